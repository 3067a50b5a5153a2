"""Texts for a student and a teacher with different tokenizers: each in the tokens of both, aligned by bytes."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_distill.data import column
from hf_distill.data.alignment import Segments, TwoTokenizers, runs, whole
from hf_distill.data.label_names import IGNORED
from hf_distill.data.rereading import Rereading
from hf_distill.data.two_tokenizers import (
    ALIGNED_AT,
    APART,
    MARK,
    PREFIX,
    SPAN,
    TEACHER_PROMPT,
    TEACHER_SPAN,
    PadBoth,
    teacher_view,
)
from hf_distill.errors import UserError
from hf_distill.models.vocabulary_map import VocabularyMap
from hf_distill.tasks.language import PadTokens, pad_token_id, vocabulary
from hf_distill.tasks.text_tokens import COMPLETION_IDS, PROMPT_IDS, TextEncoder, Tokens, prompts_of

if TYPE_CHECKING:
    from datasets import Dataset, Features
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from hf_distill.tasks.base import Prepared, Setup

logger = logging.getLogger(__name__)

_OTHER = "Choose a teacher of the student's family."


@dataclass(frozen=True, eq=False)
class AlignedTexts:
    """Tokenises examples for the teacher too, and says which of its tokens belongs to which of the student's.

    Attributes:
        theirs: Tokenises for the teacher.
        both: What the tokens of the two stand for.
        rereading: Says what the teacher reads of a text that the student writes; None where it writes none.
    """

    theirs: TextEncoder
    both: TwoTokenizers
    rereading: Rereading | None = None

    @classmethod
    def of(cls, encoder: TextEncoder, setup: Setup, *, prefix: bool = False) -> AlignedTexts:
        """Return what tokenises for the teacher of a run.

        Args:
            encoder: Tokenises for the student.
            setup: Has the teacher's tokenizer.
            prefix: Whether tokens are compared by prefixes; see `TwoTokenizers`.

        Raises:
            UserError: The texts are packed, another model than the student writes them, or the tokens of a model do not
                say what they stand for.
        """
        teacher = setup.teacher_tokenizer
        assert teacher is not None
        if encoder.packing:
            raise UserError(
                "blocks of packed texts begin at other places for each of two tokenizers, and here each model has its "
                "own. Leave out task.packing, or choose a teacher of the student's family.",
                key="task.packing",
            )
        writing = setup.completing is not None
        if writing and setup.completions.by != "student":
            raise UserError(
                "completions that a teacher writes have its own tokens, and here teacher and student have different "
                f"ones. Wanted by: student or by: data. {_OTHER}",
                key="completions.by",
            )
        theirs, student = setup.configs
        both = two_tokenizers(encoder.tokenizer, student, teacher, theirs)
        both, its = replace(both, prefix=prefix), replace(encoder, tokenizer=teacher)
        if not writing:
            return cls(its, both)
        turn = _end_of_turn(teacher) if encoder.chat else None
        end = teacher.eos_token_id if turn is None else turn
        return cls(its, both, Rereading(both, end, encoder.max_length))

    @property
    def settings(self) -> tuple[Any, ...]:
        """What the columns depend on beside the student's tokenizer, as JSON values."""
        from hf_distill.models.tokenizers import tokenizer_state

        state = tokenizer_state(self.both.teacher)
        found = ("aligned", state, sorted(self.both.ends), sorted(self.both.their_ends), self.both.prefix)
        return found if self.rereading is None else (*found, "written", self.rereading.end)

    @property
    def features(self) -> Features:
        """Types of the columns."""
        from datasets import Features, List, Value

        lists = (MARK, f"{PREFIX}labels", ALIGNED_AT, SPAN, TEACHER_SPAN)
        numbers = (f"{PREFIX}length", *([] if self.rereading is None else [TEACHER_PROMPT]))
        return Features({name: List(Value("int32")) for name in lists} | {name: Value("int64") for name in numbers})

    def columns(
        self, batch: Mapping[str, list[Any]], rows: Sequence[int], split: str, made: Sequence[Tokens]
    ) -> dict[str, list[Any]]:
        """Return the teacher's columns of a batch, for each example that the student's encoder has made of it.

        Args:
            batch: Raw columns.
            rows: Row numbers, for messages.
            split: Name of the split, for messages.
            made: The student's examples.
        """
        texts = {name: cells for name, cells in batch.items() if name not in (COMPLETION_IDS, PROMPT_IDS)}
        every = zip(_by_row(made), _by_row(self.theirs(texts, rows, split)), strict=True)
        found: dict[str, list[Any]] = {name: [] for name in self.features}
        for ours, theirs in every:
            # A template that writes turns differently once more follow may make other examples of a row.
            pairs = zip(ours, theirs, strict=True) if len(ours) == len(theirs) else ((one, None) for one in ours)
            for one, other in pairs:
                for name, value in self._row(one, other).items():
                    found[name].append(value)
        return found

    def look(
        self, batch: Mapping[str, list[Any]], rows: Sequence[int], split: str, made: Sequence[Tokens], least: float
    ) -> None:
        """Refuse the first rows of a split if too few of their tokens are compared; arguments as of `columns`.

        Raises:
            UserError: The share is below `least`.
        """
        limit = self.theirs.max_length
        aligned = self.columns(batch, rows, split, made)[ALIGNED_AT]
        compared = sum(place != APART for row in aligned for place in row)
        check_coverage(compared, sum(label != IGNORED for one in made for label in one.labels[:limit]), least)

    def _row(self, ours: Tokens, theirs: Tokens | None) -> dict[str, Any]:
        """Return the columns of one example; of one that the teacher does not have nothing is compared."""
        limit = self.theirs.max_length
        ids, labels = ours.ids[:limit], ours.labels[:limit]
        if self.rereading is not None and not self.theirs.chat and not ours.left_out:
            return self._reread(ours.prompt, ids, labels, self.rereading)
        if theirs is None or theirs.left_out or ours.left_out:
            number = pad_token_id(self.both.teacher)
            read, learned = [number], [IGNORED]
            at, span, their_span = [APART] * len(ids), [-1] * len(ids), [-1]
        else:
            read, learned = theirs.ids[:limit], theirs.labels[:limit]
            made = self.both.align(ids, read, self._segments(ids, labels, 0), self._segments(read, learned, 1))
            at = [place if label != IGNORED else APART for place, label in zip(made.at, labels, strict=True)]
            span, their_span = _whole_spans(made.span, labels, made.their_span)
        return {
            MARK: read,
            f"{PREFIX}labels": learned,
            f"{PREFIX}length": len(read),
            ALIGNED_AT: at,
            SPAN: span,
            TEACHER_SPAN: their_span,
            **({} if self.rereading is None else {TEACHER_PROMPT: theirs.prompt if theirs is not None else 0}),
        }

    def _reread(self, prompt: int, ids: Sequence[int], labels: Sequence[int], rereading: Rereading) -> dict[str, Any]:
        """Return the columns of a prompt, with its completion if the data has one, in the student's tokens.

        The teacher reads the text of the student's prompt, which may be a part of a text, and the completion after it:
        the same as it will of one that the student writes. It does not read a prompt that ends within a character.
        """
        special = {*self.both.student.all_special_ids}
        first = next((place for place, one in enumerate(ids) if one not in special), len(ids))
        text = str(self.both.student.decode(list(ids[first:prompt]), clean_up_tokenization_spaces=False))
        before = [] if text.endswith("\ufffd") else prompts_of(self.both.teacher, [text])[0]
        if self.theirs.max_length is not None and len(before) >= self.theirs.max_length:
            before = []
        made = rereading(ids[prompt:], len(before))
        start = before or [pad_token_id(self.both.teacher)]
        learned = [made.ids[place] if group >= 0 else IGNORED for place, group in enumerate(made.their_span)]
        at = [place if label != IGNORED else APART for place, label in zip(made.at, labels[prompt:], strict=True)]
        span, their_span = _whole_spans(made.span, labels[prompt:], [-1, *made.their_span])
        return {
            MARK: [*start, *made.ids],
            f"{PREFIX}labels": [IGNORED] * len(start) + learned,
            f"{PREFIX}length": len(start) + len(made.ids),
            ALIGNED_AT: [APART] * prompt + at,
            SPAN: [-1] * prompt + span,
            TEACHER_SPAN: [-1] * len(start) + their_span[1:],
            TEACHER_PROMPT: len(before),
        }

    def _segments(self, ids: Sequence[int], labels: Sequence[int], side: int) -> Segments:
        """Return which tokens are the same text for both: what the assistant says; else all of it."""
        if self.theirs.chat:
            return runs(label != IGNORED for label in labels)
        tokenizer = (self.both.student, self.both.teacher)[side]
        return whole(self.both.texts[side], ids, tokenizer.all_special_ids)


def two_tokenizers(
    tokenizer: PreTrainedTokenizerBase,
    student: PretrainedConfig,
    their_tokenizer: PreTrainedTokenizerBase,
    teacher: PretrainedConfig,
) -> TwoTokenizers:
    """Return what the tokens of two models stand for.

    Args:
        tokenizer: The student's tokenizer.
        student: Its configuration, which says what ends a text.
        their_tokenizer: The teacher's.
        teacher: Its configuration.

    Raises:
        UserError: The tokens of one of them do not say what they stand for.
    """
    for side, one in (("student", tokenizer), ("teacher", their_tokenizer)):
        check_bytes(one, side)
    return TwoTokenizers(tokenizer, their_tokenizer, _ends(student, tokenizer), _ends(teacher, their_tokenizer))


def mapping_of(both: TwoTokenizers) -> VocabularyMap:
    """Return which tokens of two models stand for the same text.

    Raises:
        UserError: None does.
    """
    made = VocabularyMap.of(*both.vocabularies, prefix=both.prefix)
    if made is None:
        raise UserError(f"no token of the teacher stands for the same text as one of the student. {_OTHER}")
    return made


def check_bytes(tokenizer: PreTrainedTokenizerBase, side: str) -> None:
    """Refuse a tokenizer whose tokens do not say what they stand for.

    Raises:
        UserError: It is one.
    """
    from hf_distill.data.token_bytes import token_bytes

    try:
        token_bytes(tokenizer)
    except UserError as error:
        raise UserError(f"{error} {_OTHER}", key=f"{side}.model") from error


def _ends(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the ids that end a text of a model, or a turn of the assistant by its chat template."""
    found: Any = getattr(config.get_text_config(), "eos_token_id", None)
    every = found if isinstance(found, list | tuple) else [found]
    return frozenset(
        number for number in (*every, tokenizer.eos_token_id, _end_of_turn(tokenizer)) if number is not None
    )


def _end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the special token that a chat template writes after what the assistant says; None if there is none."""
    if not tokenizer.chat_template:
        return None
    said = "Bonjour"
    try:
        turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": said}]
        text = str(tokenizer.apply_chat_template(turns, tokenize=False))
    # A template is a program and can raise any error.
    except Exception:
        return None
    ids: list[int] = tokenizer(text.rpartition(said)[2], add_special_tokens=False)["input_ids"]
    special = set(tokenizer.all_special_ids) | {
        number for number, token in tokenizer.added_tokens_decoder.items() if token.special
    }
    return next((number for number in ids if number in special), None)


def _by_row(made: Iterable[Tokens]) -> list[list[Tokens]]:
    """Return the examples of each row together."""
    found: list[list[Tokens]] = []
    for one in made:
        if one.further:
            found[-1].append(one)
        else:
            found.append([one])
    return found


def _whole_spans(span: list[int], labels: Sequence[int], their_span: list[int]) -> tuple[list[int], list[int]]:
    """Return the spans of both without those of which a token is not learned, or comes first."""
    outside = {group for group, label in zip(span, labels, strict=True) if label == IGNORED} | {*their_span[:1]}
    ours, theirs = ([-1 if group in outside else group for group in groups] for groups in (span, their_span))
    return ours, theirs


# ---- The data of a run -----------------------------------------------------------------------------------------------


def with_teacher(prepared: Prepared, texts: AlignedTexts, evaluator: Any, least: float) -> Prepared:
    """Return the data for a teacher with a tokenizer of its own.

    Args:
        prepared: For the student, with the columns of `AlignedTexts`.
        texts: As they were aligned.
        evaluator: Of the teacher.
        least: Share of the tokens to learn that have to be compared.

    Raises:
        UserError: Fewer are.
    """
    from hf_distill.rows.tokens import TokenRows

    mapping = mapping_of(texts.both)
    shown = f"alignment   {coverage_in_words(prepared.train, least, prefix=texts.both.prefix)}; {mapping.in_words()}"
    logger.info("%s", " ".join(shown.split()))
    tokenizer = texts.both.teacher
    pad = PadTokens(pad_token_id(tokenizer))
    theirs = replace(
        prepared,
        train=teacher_view(prepared.train),
        eval=teacher_view(prepared.eval),
        layout=TokenRows(shift=True, classes=vocabulary(tokenizer)),
        collator=pad,
        evaluator=evaluator,
        shown=(shown,),
    )
    return replace(
        prepared,
        layout=replace(prepared.layout, mapping=mapping, rereading=texts.rereading),  # type: ignore[type-var]
        collator=PadBoth(prepared.collator, pad),
        for_teacher=theirs,
    )


def coverage_in_words(split: Dataset, least: float, *, prefix: bool = False) -> str:
    """Return how many of the tokens to learn are compared.

    Args:
        split: With labels and `aligned_at`.
        least: The smallest share that is taken.
        prefix: Whether tokens are compared by prefixes.

    Raises:
        UserError: The share is smaller.
    """
    compared, learned = (
        int((np.asarray(column(split, name).combine_chunks().flatten()) != nothing).sum())
        for name, nothing in ((ALIGNED_AT, APART), ("labels", IGNORED))
    )
    if not learned:
        return (
            "what the student writes is compared as far as its tokens are the teacher's (compared_tokens in the logs)"
        )
    check_coverage(compared, learned, least)
    share = 100 * compared / max(1, learned)
    what = "begin where one of the teacher does" if prefix else "are one token of the teacher too"
    return f"{share:.1f} % of the tokens to learn {what}, and compared"


def check_coverage(compared: int, learned: int, least: float) -> None:
    """Refuse texts of which too few tokens are compared.

    Raises:
        UserError: The share is below `least`.
    """
    if learned and compared < least * learned:
        raise UserError(
            f"only {100 * compared / learned:.1f} % of the tokens to learn are one token of the teacher too; the "
            f"others would teach nothing. Wanted at least {100 * least:g} % (min_coverage). {_OTHER}",
            key="task.min_coverage",
        )
