"""Row layouts of heads with an output for every token: language models and token classifiers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_distill.data.label_names import IGNORED, UNLABELLED
from hf_distill.data.rereading import Rereading
from hf_distill.data.two_tokenizers import ALIGNED_AT, MARK, SAME, SPAN, TEACHER_SPAN, teacher_inputs
from hf_distill.errors import UserError
from hf_distill.models.vocabulary_map import VocabularyMap
from hf_distill.rows.base import Places, RowLayout, Rows, Unit, upcast
from hf_distill.rows.written import SpanTokens


@lru_cache(maxsize=8)
def shared_columns(classes: int, left_out: tuple[int, ...], device: torch.device) -> Tensor:
    """Return the columns that are not left out, ascending, `(classes - len(left_out),)`.

    >>> shared_columns(5, (1, 4), torch.device("cpu"))
    tensor([0, 2, 3])
    """
    kept = torch.ones(classes, dtype=torch.bool)
    kept[list(left_out)] = False
    return kept.nonzero()[:, 0].to(device)


@dataclass(frozen=True)
class TokenRows(RowLayout):
    """Per-token heads: logits `(batch, tokens, classes)`, one row for each token whose label is not -100.

    Without labels every token in the attention mask is a row. A task writes `label_names.UNLABELLED` for a token that
    counts and whose label is not known: the row is used for distillation, but not for the label loss.

    A teacher with tokens of its own is compared in the rows for which the batch has a position in these
    (`two_tokenizers.ALIGNED_AT`). The others are not rows of the teacher, and count as labels only.

    Attributes:
        shift: Logits at position i predict token i + 1 (causal language models), if position i is not padding.
        classes: Number of columns that are tokens. Models pad their embeddings to round sizes; columns past the
            vocabulary are not tokens and must not take part in the softmax.
        teacher_columns: Column of the teacher's logits for each of the student's, if their orders differ.
        left_out: Columns that are another token, or no token, for the teacher, in ascending order. The models are
            compared on the other columns only; a label may be any of `classes`.
        mapping: Which tokens of both models stand for the same text, if the teacher has another vocabulary.
        rereading: Says what such a teacher reads of a text that the student writes; None where it writes none.
    """

    outputs_by_token: ClassVar[bool] = True
    columns: ClassVar[tuple[str, ...]] = ("labels", ALIGNED_AT, SPAN, TEACHER_SPAN)  # type: ignore[misc]
    token_columns: ClassVar[tuple[str, ...]] = ("labels", ALIGNED_AT, SPAN)

    shift: bool = False
    classes: int | None = None
    teacher_columns: tuple[int, ...] | None = None
    left_out: tuple[int, ...] = ()
    mapping: VocabularyMap | None = None
    rereading: Rereading | None = None

    @property
    def their_classes(self) -> int | None:
        """Number of columns of the teacher's head that are tokens; None for all."""
        return self.classes if self.mapping is None else len(self.mapping.teacher.group)

    def shared(self, device: torch.device) -> Tensor | None:
        """Return the columns that are not left out, `(columns,)`; None if all are shared."""
        return shared_columns(self.classes, self.left_out, device) if self.classes and self.left_out else None

    @property
    def has_named_classes(self) -> bool:
        """Whether the columns are the task's labels, not the tokens of a vocabulary."""
        return self.classes is None

    @property
    def has_spans(self) -> bool:
        """Whether it is a causal language model that reads the tokens."""
        return self.shift

    @property
    def by_position(self) -> bool:
        """Whether rows can be computed position by position: not in a subclass that overrides `select`."""
        kind = type(self)
        own = kind.select is not TokenRows.select or kind.logits is not RowLayout.logits
        return self.teacher_columns is None and not own

    def _mask(self, inputs: Mapping[str, Tensor]) -> Tensor:
        labels, attended = inputs.get("labels"), inputs.get("attention_mask")
        if labels is not None:
            mask = labels != IGNORED
        else:
            mask = (torch.ones_like(inputs["input_ids"]) if attended is None else attended) != 0
        if not self.shift:
            return mask
        # With padding on the left, padding comes before the first token, and must not count as predicting it.
        return mask[:, 1:] if attended is None else mask[:, 1:] & (attended[:, :-1] != 0)

    def select(self, student: Tensor, teacher: Tensor | None, inputs: Mapping[str, Tensor]) -> Rows:
        """Return one row for each token that counts."""
        places = self.places(inputs)
        return Rows(
            student=self._rows(student, places),
            teacher=None if teacher is None else self._teacher_rows(teacher.detach(), places),
            labels=places.labels,
            example=places.example,
            examples=len(student),
            shared=self.shared(student.device),
            taught=places.taught,
            written=places.written,
            mapping=self.mapping,
        )

    def places(self, inputs: Mapping[str, Tensor]) -> Places:
        """Return the positions of the tokens that count."""
        mask, labels = self._mask(inputs), inputs.get("labels")
        example, position = mask.nonzero().unbind(-1)
        aligned, theirs, their_positions = self._aligned(inputs), None, 0
        if aligned is not None:
            theirs = aligned[example, position]
            their_positions = teacher_inputs(inputs)["input_ids"].shape[1] - self.shift
        if labels is None:
            return Places(mask, torch.full_like(example, IGNORED), example, position, theirs, their_positions)
        known = (labels[:, 1:] if self.shift else labels)[example, position]
        written = None
        if self.shift and "input_ids" in inputs:
            read = inputs["input_ids"][:, 1:][example, position]
            written = torch.where(known == UNLABELLED, read, torch.full_like(read, IGNORED))
        known = known.masked_fill(known == UNLABELLED, IGNORED)
        return Places(mask, known, example, position, theirs, their_positions, written)

    def _aligned(self, inputs: Mapping[str, Tensor]) -> Tensor | None:
        """Return the teacher's position for each of the mask, `(batch, positions)`; None where it is the same."""
        aligned = inputs.get(ALIGNED_AT)
        if aligned is None and MARK in inputs and SAME not in inputs:
            raise UserError(
                f"the batch has the teacher's own tokens ({MARK}), and not which of them belongs to which label of the "
                f"student's. Wanted: a column {ALIGNED_AT}, as the task text-generation makes it."
            )
        return aligned if aligned is None or not self.shift else aligned[:, 1:]

    def written(self, inputs: Mapping[str, Tensor], *, teacher: bool = False) -> SpanTokens:
        """Return the tokens of the texts that make up spans, as the student or the teacher reads them.

        Without the column `span` each token that counts, and is compared with the teacher, is a span of its own.
        """
        read = teacher_inputs(inputs)["input_ids"] if teacher else inputs["input_ids"]
        span = self._spans(inputs, own=teacher and SPAN in inputs)
        example, position = (span >= 0).nonzero().unbind(-1)
        number, there, mask = span[example, position], position, span >= 0
        if teacher and SPAN not in inputs and (aligned := self._aligned(inputs)) is not None:
            there, mask = aligned[example, position], torch.ones_like(read[:, 1:], dtype=torch.bool)
        return SpanTokens(Places(mask, read[example, there + 1], example, there), number, inputs["input_ids"].shape[1])

    def _spans(self, inputs: Mapping[str, Tensor], *, own: bool = False) -> Tensor:
        """Return the number of the span of every token but the first, `(batch, tokens - 1)`; -1 where it has none."""
        if (name := TEACHER_SPAN if own else SPAN) in inputs:
            return inputs[name][:, 1:]
        mask, aligned = self._mask(inputs), self._aligned(inputs)
        if aligned is not None:
            mask = mask & (aligned >= 0)
        if self.left_out:
            mask = mask & ~torch.isin(inputs["input_ids"][:, 1:], torch.tensor(self.left_out, device=mask.device))
        return torch.arange(mask.shape[1], device=mask.device).where(mask, -1)

    def units(self, inputs: Mapping[str, Tensor]) -> dict[Unit, Tensor]:
        """Return the number of every unit in each example; spans where each token is predicted from those before."""
        counts = super().units(inputs)
        if self.shift:
            span = self._spans(inputs)
            counts["span"] = ((span >= 0) & (span != F.pad(span[:, :-1], (1, 0), value=-1))).sum(-1).to(counts["row"])
        return counts

    def _rows(self, logits: Tensor, places: Places) -> Tensor:
        return upcast(places.pick(logits)[:, : self.classes])

    def _teacher_rows(self, logits: Tensor, places: Places) -> Tensor:
        rows = upcast(places.pick_theirs(logits)[:, : self.their_classes])
        shared = self.shared(rows.device)
        if shared is not None:
            return rows.index_select(-1, shared)
        return rows if self.teacher_columns is None else rows[:, list(self.teacher_columns)]

    def teacher_rows(self, teacher: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the teacher's rows, not detached."""
        if ALIGNED_AT in inputs:
            return self._teacher_rows(teacher, self.places(inputs))
        shared = self.shared(teacher.device)
        rows = super().teacher_rows(teacher, inputs)
        return rows if shared is None else rows.index_select(-1, shared)

    def counts(self, inputs: Mapping[str, Tensor]) -> dict[Unit, Tensor]:
        """Return the number of rows, labels, tokens that a model wrote and examples per example, `(batch,)` each.

        With a teacher that has tokens of its own, rows are those that are compared with it.
        """
        mask, labels, aligned = self._mask(inputs), inputs.get("labels"), self._aligned(inputs)
        compared = mask if aligned is None else mask & (aligned >= 0)
        rows = compared.sum(-1).float()
        if labels is None:
            labelled = written = torch.zeros_like(rows)
        else:
            known = (labels[:, 1:] if self.shift else labels) != UNLABELLED
            labelled = (mask & known).sum(-1).float()
            written = (compared & ~known).sum(-1).float() if self.shift else torch.zeros_like(rows)
        return {"row": rows, "label": labelled, "written": written, "example": torch.ones_like(rows)}


@dataclass(frozen=True)
class TargetRows(TokenRows):
    """Encoder-decoder language models: logits `(batch, target tokens, classes)`, one row per label that is not -100.

    The batch must have `labels` and `decoder_input_ids`: the labels shifted one place to the right, after the
    decoder's start token. `labels` are not passed to `forward`, and without `decoder_input_ids` some models (BART)
    would silently use the source text instead.

    Attributes:
        shift: Always False: the shift is in `decoder_input_ids`.
        classes: Number of columns that are tokens.
        left_out: Columns that are another token, or no token, for the teacher.
        teacher_columns: Column of the teacher's logits for each of the student's, if their orders differ.
    """

    token_columns: ClassVar[tuple[str, ...]] = ()  # labels are those of the decoder
    token_units: ClassVar[tuple[Unit, ...]] = ("token", "row")  # of the encoder and of the decoder

    def places(self, inputs: Mapping[str, Tensor]) -> Places:
        """Return the positions of the tokens that count."""
        _check(inputs, "labels", "decoder_input_ids")
        return super().places(inputs)

    def counts(self, inputs: Mapping[str, Tensor]) -> dict[Unit, Tensor]:
        """Return the number of rows, labels and examples per example, `(batch,)` each."""
        _check(inputs, "labels")
        return super().counts(inputs)


def _check(inputs: Mapping[str, Tensor], *wanted: str) -> None:
    missing = [name for name in wanted if name not in inputs]
    if missing:
        raise ValueError(
            f"a batch for encoder-decoder models needs {' and '.join(missing)}; found {', '.join(inputs)}. "
            "DataCollatorForSeq2Seq(tokenizer, model=student) makes decoder_input_ids of the labels."
        )
