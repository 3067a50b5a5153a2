"""Sentence similarity: vectors of texts, whose cosine says how much two texts mean the same."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field

from hf_distill.component import component
from hf_distill.data import by_length, column
from hf_distill.errors import UserError
from hf_distill.models import Head
from hf_distill.objectives.sentences import MARGIN
from hf_distill.own_tokens import PadBoth, side_by_side, teacher_view
from hf_distill.tasks.base import Prepared, SaidLabels, Setup, Task
from hf_distill.tasks.class_labels import read_labels
from hf_distill.tasks.labelling import Labelling
from hf_distill.tasks.language import check_texts
from hf_distill.tasks.text_classification import check_length
from hf_distill.tasks.tokenising import tokenise

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from hf_distill.objectives.base import Objective

logger = logging.getLogger(__name__)

Pooling = Literal["mean", "cls"]
TEXTS = ("text", "text_pair", "negative")
# A second text that the student alone reads.
TRANSLATION = "translation"
ROLES = ("text_pair", "negative", "label")
METRICS = ("spearman", "pearson")


def _rising(ends: list[float]) -> list[float]:
    if ends[0] >= ends[1]:
        raise ValueError("the lowest score comes first, then the highest")
    return ends


ScoreRange = Annotated[list[float], Field(min_length=2, max_length=2), AfterValidator(_rising)]


@component
class SentenceSimilarity(Task):
    """Vectors of texts: single ones, pairs with or without a score, or triples with a text that does not fit.

    With a role `translation` the student reads a text and its translation, and both vectors are to be the teacher's of
    the text alone (Reimers and Gurevych 2020, arXiv 2004.09813). A role `margin` holds, for triples, how much higher a
    better model scores the second text than the negative, which `margin_mse` learns in the teacher's place.

    The student is the plain backbone, which `AutoModel` loads; a few files beside it tell sentence-transformers how it
    pools. Judged by the rank correlation of cosines and scores. Teacher and student may have tokenizers of their own.

    Attributes:
        pooling: `mean` or `cls` (the first token), for models that do not say how they pool; those made by
            sentence-transformers do, in modules.json. A teacher's pooling, and whether it normalises, is also the
            student's where neither the student nor this says anything. Mean in the end.
        score_range: The lowest and the highest score there can be (`[0, 5]`): they become 0 and 1, to be comparable
            with a cosine. Left out, scores are taken as they are, and must lie between -1 and 1.
    """

    name: ClassVar[str] = "sentence-similarity"
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
    groups_by_length: ClassVar[bool] = True

    pooling: Pooling | None = None
    score_range: ScoreRange | None = None

    def prepare(self, splits: Mapping[str, Dataset], setup: Setup) -> Prepared:
        """See `Task.prepare`."""
        from hf_distill.metrics import check, score
        from hf_distill.rows.similarity import SimilarityRows
        from hf_distill.sentence_encoder import AsSentenceEncoder

        _check_columns(splits)
        _check_same(splits)
        translated = TRANSLATION in splits["train"].column_names
        scores = Scores(_read_scores(splits, setup.label_names, self.score_range), self.score_range)
        names = setup.metrics or list(METRICS)
        check(names, "values", 1)
        default, limit = self._encoding(setup)
        setup = replace(setup, max_length=limit)
        for tokenizer in filter(None, (setup.tokenizer, setup.teacher_tokenizer)):
            check_length(tokenizer, limit)
        tokenised = {name: _read(split, name, setup, scores) for name, split in splits.items()}
        prepared = Prepared(
            train=tokenised["train"],
            eval=by_length(tokenised["eval"]),
            head=Head(self.auto_class, adapt=AsSentenceEncoder(default, limit)),
            layout=SimilarityRows(pairs=not translated),
            collator=PadTexts(setup.tokenizer),
            metrics=partial(score, names, kind="values"),
            metric_names=tuple(names) if "eval" in scores.labelled else (),
            label_names=None,
            labelled="train" in scores.labelled,
        )
        if not prepared.metric_names and not translated:
            logger.warning("the eval split has no pairs with scores: the report cannot say how good the models are")
        if setup.teacher_tokenizer is None and not translated:
            return prepared
        own = PadTexts(setup.teacher_tokenizer or setup.tokenizer)
        theirs = replace(prepared, train=teacher_view(prepared.train), eval=teacher_view(prepared.eval), collator=own)
        return replace(prepared, collator=PadBoth(PadTexts(setup.tokenizer), own), for_teacher=theirs)

    def _encoding(self, setup: Setup) -> tuple[Any, int | None]:
        """Return how models pool that do not say, and where texts are cut: no later than the teacher is used to."""
        from hf_distill.pooling import Encoding, read_encoding

        teachers = None if setup.teacher is None else read_encoding(setup.teacher)
        default = teachers or Encoding()
        if self.pooling is not None:
            default = replace(default, pooling=self.pooling)
        if setup.teacher is not None and teachers is None:
            logger.warning(
                "the teacher does not come from sentence-transformers: its vectors are the %s of its tokens",
                "first" if default.pooling == "cls" else "mean",
            )
        limits = [limit for limit in (setup.max_length, default.max_length) if limit is not None]
        limit = min(limits, default=None)
        if limit != setup.max_length:
            logger.info("texts are cut at %s tokens, as the teacher's own files say", limit)
        return default, limit

    def check_model(self, config: PretrainedConfig) -> None:
        """See `Task.check_model`."""
        from hf_distill.pooling import read_encoding
        from hf_distill.sentence_encoder import check_backbone

        check_backbone(config)
        read_encoding(config)

    def check(self, objectives: tuple[Objective, ...], prepared: Prepared) -> None:
        """See `Task.check`; refuses besides what compares two or three texts where there are fewer."""
        super().check(objectives, prepared)
        layout: Any = prepared.layout
        if not layout.pairs:
            _check_translations(objectives)
            return
        texts = len(prepared.train[0]["input_ids"])
        wanted = {"row": 2, "label": 2, "triple": 3}
        for index, objective in enumerate(objectives):
            if wanted.get(objective.unit, 1) > texts:
                role = TEXTS[wanted[objective.unit] - 1]
                raise UserError(
                    f"'{objective.name}' compares {'two' if role == 'text_pair' else 'three'} texts of an example, and "
                    f"in the train split there is no '{role}'. Say which column it is: data: {{columns: {{{role}: "
                    "...}}. Single texts can be learned by sentence_embedding and similarity_matrix.",
                    key=f"objectives[{index}]",
                )
        names = {objective.name for objective in objectives}
        columns = prepared.train.column_names
        if MARGIN in columns and "margin_mse" not in names:
            logger.warning("the data has margins, and no objective learns them: add {name: margin_mse}")
        if "margin_mse" in names and "labels" in columns and MARGIN not in columns:
            logger.warning(
                "margin_mse learns the teacher's margins; the scores are taken for similarities of text and text_pair. "
                "If they are margins of another model: data: {columns: {margin: ...}}"
            )
        if texts == 2 and names == {"sentence_embedding"} and "labels" not in columns:
            logger.warning(
                "both models read both texts. If the second is a translation, which only the student is to read: "
                "data: {columns: {translation: ...}}"
            )


def _check_translations(objectives: tuple[Objective, ...]) -> None:
    """Refuse what compares the texts of an example with each other, where the teacher reads one of them only."""
    for index, objective in enumerate(objectives):
        if objective.name != "sentence_embedding":
            raise UserError(
                f"'{objective.name}' does not go with translations, of which the teacher reads the first text only. "
                "Use sentence_embedding.",
                key=f"objectives[{index}]",
            )


# ---- What the columns hold -------------------------------------------------------------------------------------------


def _check_columns(splits: Mapping[str, Dataset]) -> None:
    """Refuse texts that are none, and scores and negatives without a pair."""
    for name, split in splits.items():
        present = [role for role in (*TEXTS, TRANSLATION) if role in split.column_names]
        check_texts({name: split}, present)
        if TRANSLATION in present and (other := [one for one in split.column_names if one in (*ROLES, MARGIN)]):
            raise UserError(
                f"the {name} split has translations, and besides {', '.join(other)}: a translation stands beside "
                "one text alone. Leave the others out.",
                key=f"columns.{other[0]}",
            )
        if MARGIN in split.column_names:
            _check_margins(split, name)
        for role, what in (("negative", "a text that does not fit"), ("label", "a score")):
            if role in split.column_names and "text_pair" not in split.column_names:
                raise UserError(
                    f"the {name} split has {what} and no second text that it belongs to. Say which column that is.",
                    key="columns.text_pair",
                )


def _check_same(splits: Mapping[str, Dataset]) -> None:
    """Refuse a column of one split only that decides what is learned."""
    for role in (TRANSLATION, MARGIN):
        having = [name for name, split in splits.items() if role in split.column_names]
        if having and len(having) < len(splits):
            raise UserError(
                f"only the {having[0]} split has a {role}: the other would be compared with something else. Give it to "
                "both.",
                key=f"columns.{role}",
            )


def _check_margins(split: Dataset, name: str) -> None:
    import numpy as np
    import pyarrow.types as pt  # type: ignore[import-untyped]

    margins, key = column(split, MARGIN), f"columns.{MARGIN}"
    if "negative" not in split.column_names:
        raise UserError(
            f"the {name} split has margins and no negative that they belong to. Say which column that is.",
            key="columns.negative",
        )
    if not pt.is_floating(margins.type) and not pt.is_integer(margins.type):
        raise UserError(f"the margins of the {name} split are {margins.type}; wanted numbers.", key=key)
    values = np.array([np.nan if one is None else one for one in margins.to_pylist()], float)
    if len(bad := np.flatnonzero(~np.isfinite(values))):
        raise UserError(
            f"row {bad[0]} (counted from 0) of the {name} split has no finite margin. Drop it, or fill it in.", key=key
        )


def _read_scores(splits: Mapping[str, Dataset], names: SaidLabels, ends: list[float] | None) -> Labelling:
    """Read the scores; refuse those that a cosine could never reach."""
    import numpy as np

    having = {name: split for name, split in splits.items() if "label" in split.column_names}
    found = read_labels(having, problem="regression", names=names, teacher=None, student=None)
    if found.width > 1:
        raise UserError(f"a row has {found.width} scores; wanted one for each pair.", key="columns.label")
    low, high = ends or (-1.0, 1.0)
    for name in found.labelled:
        scores = np.asarray(found.encode(having[name]["label"][:]))
        least, most = np.nanmin(scores), np.nanmax(scores)
        if least < low or most > high:
            scale = f"task: {{name: {SentenceSimilarity.name}, score_range: [lowest, highest]}}"
            way_out = "Correct score_range." if ends else f"Say on which scale they are: {scale}."
            if "negative" in having[name].column_names:
                way_out += f" If they are margins of another model: data: {{columns: {{{MARGIN}: ...}}}}."
            raise UserError(
                f"scores of the {name} split go from {least:g} to {most:g}; wanted {low:g} to {high:g}. {way_out}",
                key="columns.label",
            )
    return found


@dataclass(frozen=True)
class Scores:
    """Scores on the scale of a cosine.

    Attributes:
        labelling: Tells a missing score.
        ends: Of the scale in the data; they become 0 and 1. None where it is a cosine's.
    """

    labelling: Labelling
    ends: list[float] | None

    @property
    def labelled(self) -> tuple[str, ...]:
        """Splits with at least one score."""
        return self.labelling.labelled

    def encode(self, values: list[Any]) -> list[float]:
        """Return the scores, NaN for none."""
        low, high = self.ends or (0.0, 1.0)
        return [(score - low) / (high - low) for score in self.labelling.encode(values)]


# ---- From texts to batches -------------------------------------------------------------------------------------------


def _read(split: Dataset, name: str, setup: Setup, scores: Scores) -> Dataset:
    """Return a split as the student reads it and, where the teacher has a tokenizer of its own, as the teacher does."""
    student = _tokenise(split, name, setup.tokenizer, setup.max_length, scores)
    translated = TRANSLATION in split.column_names
    if setup.teacher_tokenizer is None and not translated:
        return student
    theirs = split.remove_columns([one for one in (TRANSLATION, MARGIN) if one in split.column_names])
    tokenizer = setup.teacher_tokenizer or setup.tokenizer
    return side_by_side(student, _tokenise(theirs, name, tokenizer, setup.max_length, scores))


def _tokenise(
    split: Dataset, name: str, tokenizer: PreTrainedTokenizerBase, max_length: int | None, scores: Scores
) -> Dataset:
    """Return the model inputs of all texts of an example in a list, `labels`, and the longest text's `length`."""
    import pyarrow.compute as pc  # type: ignore[import-untyped]

    def encode(batch: dict[str, list[Any]]) -> dict[str, Any]:
        texts = [
            tokenizer(batch[role], truncation=max_length is not None, max_length=max_length)
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

    tokenised = tokenise(split, name, encode, tokenizer, SentenceSimilarity.name, max_length, repr(scores))
    empty = pc.index(column(tokenised, "shortest"), 0).as_py()
    if empty >= 0:
        raise UserError(
            f"row {empty} (counted from 0) of the {name} split has an empty text: the tokenizer gives no token for it. "
            "Drop it.",
            key="columns.text",
        )
    return tokenised.remove_columns("shortest")


@dataclass(frozen=True)
class PadTexts:
    """Pads all texts of a batch to the longest one.

    Attributes:
        tokenizer: Knows the padding token and the side.
    """

    tokenizer: PreTrainedTokenizerBase

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Return model inputs `(batch, texts, longest)`, and `labels` and `margin` `(batch,)` where there are any."""
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
