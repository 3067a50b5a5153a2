"""Spans of text: what both models' tokens make up exactly, and how likely each model finds it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from hf_distill.rows.base import Places


@dataclass(frozen=True)
class SpanTokens:
    """The tokens of the texts of a batch that make up spans, as one model reads them.

    Attributes:
        places: Positions of the model's output that predict them; their labels are the tokens.
        span: Number of the span of each within its example, `(tokens,)`.
        spans: More than any of these numbers.
    """

    places: Places
    span: Tensor
    spans: int

    def by_span(self, values: Tensor) -> Tensor:
        """Sum a value of every token over the tokens of each span, `(batch, spans)`; 0 where there is no such span.

        Of log-probabilities the sum is, by the chain rule, that of the span as these tokens spell it.
        """
        place = self.places.example * self.spans + self.span
        examples = len(self.places.mask)
        return values.new_zeros(examples * self.spans).index_add(0, place, values.to(place.device)).view(examples, -1)


@dataclass(frozen=True)
class Spans:
    """Log-probabilities of the spans of the texts of a batch, 0 where an example has no such span.

    Attributes:
        student: By the student, `(batch, spans)`, float32 or better.
        teacher: By the teacher, detached; None without a teacher.
    """

    student: Tensor
    teacher: Tensor
