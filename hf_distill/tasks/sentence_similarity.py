"""Sentence similarity: one vector for each text; the cosine of two vectors says how similar the texts are."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field

from hf_distill.component import component
from hf_distill.data import by_length, column
from hf_distill.data.two_tokenizers import PadBoth, side_by_side, teacher_view
from hf_distill.errors import UserError
from hf_distill.models.loading import Head
from hf_distill.models.tokenizers import Reading
from hf_distill.rows.similarity import MARGIN
from hf_distill.tasks.base import Prepared, Setup, Task
from hf_distill.tasks.evaluator import LogitsEvaluator
from hf_distill.tasks.sentence_columns import (
    NAME,
    TEXTS,
    TRANSLATION,
    Scores,
    check_columns,
    check_same,
    read_scores,
)
from hf_distill.tasks.tokenising import tokenise

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from hf_distill.completions.section import Completions
    from hf_distill.models.needs import TaskFacts
    from hf_distill.objectives.base import Objective
    from hf_distill.tasks.sentence_readers import TextReader

logger = logging.getLogger(__name__)

METRICS = ("spearman", "pearson")


def _rising(ends: list[float]) -> list[float]:
    if ends[0] >= ends[1]:
        raise ValueError("the lowest score comes first, then the highest")
    return ends


ScoreRange = Annotated[list[float], Field(min_length=2, max_length=2), AfterValidator(_rising)]


@component
class SentenceSimilarity(Task):
    """Embed texts: single texts, pairs with or without a score, or triples with a negative.

    With a role `translation` the student reads a text and its translation, and both vectors learn the teacher's vector
    of the text (Reimers and Gurevych 2020, arXiv 2004.09813). For triples, a role `margin` holds how much higher a
    better model scores the second text than the negative; `margin_mse` learns it in place of the teacher's margin.

    The student is the plain backbone, which `AutoModel` loads; a few files beside it tell sentence-transformers how it
    pools. The metric is the rank correlation of cosines and scores. Teacher and student may have different tokenizers.

    Attributes:
        pooling: Pooling of models that do not declare one: the mean of all tokens, or the first token (`cls`). Models
            made by sentence-transformers declare it in modules.json. A student that declares nothing uses the teacher's
            pooling, normalisation and default prompt. Default: the teacher's, else `mean`.
        score_range: Lowest and highest possible score, such as `[0, 5]`; scores are rescaled to 0 to 1. Without it,
            scores must lie between -1 and 1. Default: no rescaling.
    """

    name: ClassVar[str] = NAME
    auto_class: ClassVar[str] = "AutoModel"
    roles: ClassVar[Mapping[str, bool]] = {
        "text": True,
        "text_pair": False,
        "negative": False,
        "label": False,
        MARGIN: False,
        TRANSLATION: False,
    }
    own_tokenizers: ClassVar[bool] = True
    vectors: ClassVar[bool] = True
    groups_by_length: ClassVar[bool] = True
    texts: ClassVar[tuple[str, ...]] = TEXTS

    pooling: Literal["mean", "cls"] | None = None
    score_range: ScoreRange | None = None

    def prepare(self, splits: Mapping[str, Dataset], setup: Setup) -> Prepared:
        """Return the tokenised texts of each example, with scores as labels if there are any."""
        from hf_distill.metrics.score import check
        from hf_distill.rows.similarity import SimilarityRows
        from hf_distill.tasks.sentence_readers import readers

        check_columns(splits)
        check_same(splits)
        translated = TRANSLATION in splits["train"].column_names
        scores = Scores(read_scores(splits, setup.label_names, self.score_range), self.score_range)
        names = setup.metrics or list(METRICS)
        check(names, "values", 1)
        student, teacher = readers(setup, self.pooling)
        tokenised = {name: _read(split, name, student, teacher, scores) for name, split in splits.items()}
        prepared = Prepared(
            train=tokenised["train"],
            eval=by_length(tokenised["eval"]),
            head=Head(self.auto_class, adapt=student.adapt),
            layout=SimilarityRows(pairs=not translated),
            collator=PadTexts(student.tokenizer),
            evaluator=LogitsEvaluator(tuple(names) if "eval" in scores.labelled else (), "values"),
            label_names=None,
            labelled="train" in scores.labelled,
            transfer_rows=setup.transfer_rows,
            reading=Reading(student.max_length),
        )
        if not prepared.evaluator.names and not translated:
            logger.warning("the eval split has no pairs with scores: the report has no metrics of the models")
        if student.reads_like(teacher) and not translated:
            return prepared
        theirs = replace(
            prepared,
            train=teacher_view(prepared.train),
            eval=teacher_view(prepared.eval),
            head=Head(self.auto_class, adapt=teacher.adapt),
            collator=PadTexts(teacher.tokenizer),
        )
        return replace(prepared, collator=PadBoth(prepared.collator, theirs.collator), for_teacher=theirs)

    def check_model(self, config: PretrainedConfig) -> None:
        """Refuse a model that is not a plain backbone, or whose pooling files ask for something unsupported."""
        from hf_distill.models.sentence_encoder import check_backbone
        from hf_distill.models.sentence_files import read_encoding

        check_backbone(config)
        read_encoding(config)

    def facts(self, prepared: Prepared | None = None) -> TaskFacts:
        """Return the facts of the task; with `prepared`, also the number of texts and whether one is a translation."""
        found = super().facts(prepared)
        if prepared is None:
            return found
        layout: Any = prepared.layout
        return replace(found, texts=len(prepared.train[0]["input_ids"]), translated=not layout.pairs)

    def check(
        self, objectives: tuple[Objective, ...], prepared: Prepared, completions: Completions | None = None
    ) -> None:
        """Refuse objectives that have no meaning on this data, and warn about columns that none of them uses."""
        super().check(objectives, prepared, completions)
        layout: Any = prepared.layout
        if not layout.pairs:
            return
        texts = self.facts(prepared).texts
        names = {objective.name for objective in objectives}
        columns = prepared.train.column_names
        if MARGIN in columns and "margin_mse" not in names:
            logger.warning("the data has margins, but no objective uses them: add {name: margin_mse}")
        if "margin_mse" in names and "labels" in columns and MARGIN not in columns:
            logger.warning(
                "margin_mse uses the teacher's margins; the scores are read as similarities of text and text_pair. "
                "If they are margins of another model: data: {columns: {margin: ...}}"
            )
        if texts == 2 and names == {"sentence_embedding"} and "labels" not in columns:
            logger.warning(
                "both models read both texts. If the second is a translation that only the student should read: "
                "data: {columns: {translation: ...}}"
            )


# ---- From texts to batches -------------------------------------------------------------------------------------------


def _read(split: Dataset, name: str, student: TextReader, teacher: TextReader, scores: Scores) -> Dataset:
    """Return a split with the student's tokens and, if the teacher's tokens differ, the teacher's tokens."""
    own = _tokenise(split, name, student, scores)
    if student.reads_like(teacher) and TRANSLATION not in split.column_names:
        return own
    theirs = split.remove_columns([one for one in (TRANSLATION, MARGIN) if one in split.column_names])
    return side_by_side(own, _tokenise(theirs, name, teacher, scores))


def _tokenise(split: Dataset, name: str, reader: TextReader, scores: Scores) -> Dataset:
    """Return, for each example, lists of the inputs of its texts, `labels`, and the `length` of its longest text."""
    import pyarrow.compute as pc  # type: ignore[import-untyped]

    tokenizer, max_length, prompt = reader.tokenizer, reader.max_length, reader.prompt

    def encode(batch: dict[str, list[Any]]) -> dict[str, Any]:
        texts = [
            tokenizer([prompt + text for text in batch[role]], truncation=max_length is not None, max_length=max_length)
            for role in (*TEXTS, TRANSLATION)
            if role in batch
        ]
        encoded: dict[str, Any] = {
            key: [list(example) for example in zip(*(text[key] for text in texts), strict=True)] for key in texts[0]
        }
        lengths = [[len(ids) for ids in example] for example in encoded["input_ids"]]
        encoded |= {"length": list(map(max, lengths)), "shortest": list(map(min, lengths))}
        if "label" in batch:
            encoded["labels"] = scores.encode(batch["label"])
        if MARGIN in batch:
            encoded[MARGIN] = [float(margin) for margin in batch[MARGIN]]
        return encoded

    tokenised = tokenise(
        split, name, encode, tokenizer, NAME, max_length, prompt, [scores.labelling.in_key(), scores.ends]
    )
    empty = pc.index(pc.less_equal(column(tokenised, "shortest"), reader.skipped), True).as_py()
    if empty >= 0:
        raise UserError(
            f"row {empty} (counted from 0) of the {name} split has an empty text: the tokenizer gives no token for it"
            f"{' besides the prompt' if reader.skipped else ''}. "
            "Drop it.",
            key="columns.text",
        )
    return tokenised.remove_columns("shortest")


@dataclass(frozen=True)
class PadTexts:
    """Pads all texts of a batch to the longest one.

    Attributes:
        tokenizer: Has the padding token and the padding side.
    """

    tokenizer: PreTrainedTokenizerBase

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Return model inputs `(batch, texts, longest)`, and `labels` and `margin` `(batch,)` if there are any."""
        import torch
        from transformers import DataCollatorWithPadding

        numbers = [name for name in ("labels", MARGIN) if name in examples[0]]
        names = [name for name in examples[0] if name not in (*numbers, "length")]
        texts = len(examples[0]["input_ids"])
        flat = [{name: one[name][text] for name in names} for one in examples for text in range(texts)]
        padded = DataCollatorWithPadding(self.tokenizer)(flat)
        batch = {name: value.unflatten(0, (len(examples), texts)) for name, value in padded.items()}
        for name in numbers:
            batch[name] = torch.tensor([one[name] for one in examples])
        return batch
