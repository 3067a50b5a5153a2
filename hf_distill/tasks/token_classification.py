"""Token classification: one label for each word of a sentence (named entities, parts of speech)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from hf_distill.component import component
from hf_distill.data import by_length, column
from hf_distill.data.label_names import IGNORED, UNLABELLED
from hf_distill.data.misfits import is_list_of_text, misfit
from hf_distill.errors import UserError
from hf_distill.models.loading import Head
from hf_distill.tasks.base import Prepared, Setup, Task
from hf_distill.tasks.class_counts import ClassCounts, count_raw
from hf_distill.tasks.evaluator import LogitsEvaluator
from hf_distill.tasks.label_space import read_labels
from hf_distill.tasks.problem_type import Labelling
from hf_distill.tasks.tag_schemes import Scheme, bring_into_scheme
from hf_distill.tasks.text_classification import check_length
from hf_distill.tasks.tokenising import tokenise

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_TAGS = "columns.tags"


@component
class TokenClassification(Task):
    """Give every word a label, such as a named entity or a part of speech.

    A word counts once, at its first sub-word. Other sub-words and special tokens do not count. A word without a tag
    still has the teacher's targets. Metrics are over words.

    Attributes:
        label_all_subwords: Train on every sub-word of a word, not only on the first. Inside a word `B-PER` continues as
            `I-PER`. Evaluation always uses the first sub-word.
        tag_scheme: How the models mark spans. Tags in another scheme are converted to it. Default: read from the labels
            of the trained head (IOB1 if a type has no `B-` label, else IOB2 for `B-` and `I-`).
    """

    name: ClassVar[str] = "token-classification"
    auto_class: ClassVar[str] = "AutoModelForTokenClassification"
    roles: ClassVar[Mapping[str, bool]] = {"tokens": True, "tags": False}
    label_role: ClassVar[str] = "tags"
    groups_by_length: ClassVar[bool] = True
    texts: ClassVar[tuple[str, ...]] = ("tokens",)

    label_all_subwords: bool = False
    tag_scheme: Scheme | None = None

    def prepare(self, splits: Mapping[str, Dataset], setup: Setup) -> Prepared:
        """Return the tokenised words, with the tag of each word at its first sub-word."""
        from transformers import DataCollatorForTokenClassification

        from hf_distill.metrics.score import check, marks_spans
        from hf_distill.metrics.table import DEFAULTS, PLAIN_TAGS
        from hf_distill.rows.tokens import TokenRows

        tokenizer, max_length = setup.tokenizer, setup.max_length
        _check_words(splits)
        splits, setup = self._in_scheme(splits, setup)
        labelling = _labelling(splits, setup)
        spans = marks_spans(labelling.names)
        names = setup.metrics or list(DEFAULTS["tags"] if spans else PLAIN_TAGS)
        check(names, "tags", labelling.width, labelling.names)
        if not spans and not setup.metrics:
            logger.info("the tags mark no spans (B-..., I-..., O): evaluated word by word")
        leading_space = _leading_space(tokenizer)
        check_length(tokenizer, max_length)
        aligner = Aligner(tokenizer, leading_space, max_length, labelling, _continuations(labelling))
        tokenised = {
            name: _tokenise(split, name, aligner, self.label_all_subwords and name == "train")
            for name, split in splits.items()
        }
        return Prepared(
            train=tokenised["train"],
            eval=by_length(tokenised["eval"]),
            head=Head(self.auto_class, labelling.settings()),
            layout=TokenRows(teacher_columns=labelling.teacher_columns),
            collator=DataCollatorForTokenClassification(tokenizer, label_pad_token_id=IGNORED),
            evaluator=LogitsEvaluator(tuple(names) if "eval" in labelling.labelled else (), "tags", labelling.names),
            label_names=labelling.names,
            labelled="train" in labelling.labelled,
            transfer_rows=setup.transfer_rows,
        )

    def look(self, splits: Mapping[str, Dataset], setup: Setup) -> ClassCounts | None:
        """Return how often each tag occurs in some rows; words and tags are checked as `prepare` does."""
        _check_words(splits)
        splits, setup = self._in_scheme(splits, setup)
        return count_raw(splits, _labelling(splits, setup), self.label_role)

    def _in_scheme(self, splits: Mapping[str, Dataset], setup: Setup) -> tuple[Mapping[str, Dataset], Setup]:
        names = setup.label_names if isinstance(setup.label_names, list) else None
        made, converted = bring_into_scheme(splits, self.tag_scheme, setup.teacher, setup.student, names)
        return made, replace(setup, label_names=None) if converted and names else setup


def _labelling(splits: Mapping[str, Dataset], setup: Setup) -> Labelling:
    return read_labels(
        {name: split for name, split in splits.items() if "tags" in split.column_names},
        problem="single_label",
        names=setup.label_names,
        teacher=setup.teacher,
        student=setup.student,
        role="tags",
        nested=True,
    )


# ---- What the columns hold -------------------------------------------------------------------------------------------


def _check_words(splits: Mapping[str, Dataset]) -> None:
    """Refuse rows without words in `tokens`, and rows whose `tags` are not as many as their words."""
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.compute as pc  # type: ignore[import-untyped]

    for name, split in splits.items():
        words = column(split, "tokens")
        if str(getattr(words.type, "value_type", None)) not in ("string", "large_string"):
            wanted = (
                "a list of words in every row. A CSV file cannot hold lists; JSON, Parquet and CoNLL's columns can."
            )
            raise misfit(words, "tokens", name, wanted, is_list_of_text)
        lengths = pc.fill_null(pc.list_value_length(words), 0)
        _refuse_row(pc.equal(lengths, 0), name, "has no words. Drop it.")
        flat = words.combine_chunks()
        missing = pc.is_null(pc.list_flatten(flat))
        if pc.any(missing).as_py():
            row = pc.list_parent_indices(flat)[pc.index(missing, True).as_py()].as_py()
            raise _at(row, name, "has a missing word (None). Drop or fill it.")
        if "tags" not in split.column_names:
            continue
        tags = column(split, "tags")
        if not hasattr(tags.type, "value_type") or pa.types.is_dictionary(tags.type):
            continue  # no tags, or a type that `read_labels` refuses
        wrong = pc.and_(pc.is_valid(tags), pc.not_equal(pc.list_value_length(tags), lengths))
        row = pc.index(pc.fill_null(wrong, False), True).as_py()
        if row >= 0:
            counts = f"{lengths[row].as_py()} words and {len(tags[row])} tags"
            raise _at(row, name, f"has {counts}. Wanted one for each word; None where a word has none.", _TAGS)


def _refuse_row(bad: Any, split: str, what: str) -> None:
    import pyarrow.compute as pc

    row = pc.index(bad, True).as_py()
    if row >= 0:
        raise _at(row, split, what)


def _at(row: int, split: str, what: str, key: str = "columns.tokens") -> UserError:
    return UserError(f"row {row} (counted from 0) of the {split} split {what}", key=key)


# ---- From words to sub-words -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Aligner:
    """Assigns the labels of words to their sub-words.

    Attributes:
        tokenizer: A fast tokenizer, which knows the word of each token.
        leading_space: Whether all words but the first get a leading space before tokenising.
        max_length: Maximum length of an input in tokens; None for no limit.
        labelling: How tags map to the head.
        continuation: Column of the head for a word's first sub-word -> column for its other sub-words.
    """

    tokenizer: PreTrainedTokenizerBase
    leading_space: bool
    max_length: int | None
    labelling: Labelling
    continuation: Mapping[int, int]

    def encode(
        self, sentences: Sequence[Sequence[str]], tags: Sequence[Sequence[Any] | None] | None, all_subwords: bool
    ) -> dict[str, Any]:
        """Return the model inputs, `labels`, `length`, and the numbers of words `cut` and `silent` (no token).

        Args:
            sentences: The words of each sentence.
            tags: The tags of each sentence, one for each word; None for a sentence without tags, or for all.
            all_subwords: Whether later sub-words of a word have a label too.
        """
        spaced = [
            [f" {word}" if self.leading_space and at else word for at, word in enumerate(words)] for words in sentences
        ]
        encoding = self.tokenizer(
            spaced, is_split_into_words=True, truncation=self.max_length is not None, max_length=self.max_length
        )
        encoded: dict[str, Any] = {**encoding, "labels": [], "length": [], "cut": [], "silent": []}
        for row, words in enumerate(sentences):
            known = None if tags is None else tags[row]
            labels = [UNLABELLED] * len(words)
            if known is not None:
                labels = [UNLABELLED if label == IGNORED else label for label in self.labelling.encode(known)]
            places = encoding.word_ids(row)
            seen = {place for place in places if place is not None}
            # Truncation removes the end of a sentence; a word missing before the last one has no token.
            last = max(seen, default=-1)
            full = self.max_length is not None and len(places) >= self.max_length
            cut = len(words) - 1 - last if full else 0
            encoded["labels"].append(self._spread(places, labels, all_subwords))
            encoded["length"].append(len(places))
            encoded["cut"].append(cut)
            encoded["silent"].append(len(words) - len(seen) - cut)
        return encoded

    def _spread(self, places: Sequence[int | None], labels: Sequence[int], all_subwords: bool) -> list[int]:
        spread = []
        for before, place in zip([None, *places], places, strict=False):
            if place is None:
                spread.append(IGNORED)
            elif place != before:
                spread.append(labels[place])
            elif all_subwords:
                spread.append(self.continuation.get(labels[place], labels[place]))
            else:
                spread.append(IGNORED)
        return spread


def _leading_space(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether words need a leading space to be tokenised as in running text.

    Byte-level tokenizers (RoBERTa, GPT-2) have one token for a word at the start of a text and another for the same
    word after a space. For words without spaces they use the first for all, which the models have hardly seen.

    Raises:
        UserError: The tokenizer does not know which token belongs to which word.
    """
    if not tokenizer.is_fast:
        raise UserError(
            f"{type(tokenizer).__name__} does not know which token belongs to which word (it is not a fast tokenizer), "
            "so tags cannot be aligned. Name a model with a tokenizer.json: tokenizer: ...",
            key="columns.tokens",
        )
    text = tokenizer("a a", add_special_tokens=False)["input_ids"]

    def fits(words: list[str]) -> bool:
        ids: Any = tokenizer(words, is_split_into_words=True, add_special_tokens=False)["input_ids"]
        return bool(ids == text)

    if fits(["a", "a"]):
        return False
    if not fits(["a", " a"]):
        logger.warning(
            "%s tokenises single words differently than running text: the student is trained on other tokens than it "
            "reads when it is used. Choose models with another tokenizer if you can.",
            type(tokenizer).__name__,
        )
        return False
    return True


def _continuations(labelling: Labelling) -> dict[int, int]:
    """Return label B-X -> label I-X for later sub-words; a label that is not listed stays as it is."""
    at = {name: index for index, name in enumerate(labelling.names or ())}
    return {index: at[f"I-{name[2:]}"] for name, index in at.items() if name.startswith("B-") and f"I-{name[2:]}" in at}


def _tokenise(split: Dataset, name: str, aligner: Aligner, all_subwords: bool) -> Dataset:
    """Return the model inputs, `labels` and `length` of a split; the next run reads them from the `datasets` cache."""
    import pyarrow.compute as pc

    def encode(batch: dict[str, list[Any]]) -> dict[str, Any]:
        return aligner.encode(batch["tokens"], batch.get("tags"), all_subwords)

    settings = (TokenClassification.name, aligner.max_length, all_subwords, aligner.labelling.in_key())
    tokenised = tokenise(split, name, encode, aligner.tokenizer, *settings)
    sums: dict[str, int] = {key: pc.sum(column(tokenised, key)).as_py() for key in ("cut", "silent")}
    words = pc.sum(pc.list_value_length(column(split, "tokens"))).as_py()
    if sums["cut"]:
        logger.warning(
            "%s of %s words of the %s split are beyond max_length (%s tokens): they are not trained on or evaluated",
            *(f"{sums['cut']:,}", f"{words:,}", name, aligner.max_length),
        )
    if sums["silent"]:
        logger.warning(
            "%s words of the %s split give no token (empty, or only control characters) and are dropped",
            *(f"{sums['silent']:,}", name),
        )
    empty = pc.index(column(tokenised, "length"), 0).as_py()
    if empty >= 0:
        raise _at(empty, name, "is empty: the tokenizer gives no token for it. Drop it.")
    return tokenised.remove_columns(["cut", "silent"])
