"""A student without the layers that matter least to the model it is made of, measured on rows of the train split."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from hf_distill import parallel
from hf_distill.component import component
from hf_distill.errors import UserError
from hf_distill.models.layers import find_stacks
from hf_distill.students.base import Made, MeasuredStudent
from hf_distill.students.copied import CopiedStudent, measuring, sizes
from hf_distill.students.copy_layers import spread
from hf_distill.students.fewer_layers import fields_of, proportional_depths, shortened, some_layers
from hf_distill.students.influence import LayerScores, influence, loss_without
from hf_distill.students.sized import SizedStudent
from hf_distill.students.widths import Kept, kept_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel

    from hf_distill.models.calibration import CalibrationRows
    from hf_distill.models.loading import Head

logger = logging.getLogger(__name__)


@component
class PruneDepth(CopiedStudent, SizedStudent, MeasuredStudent):
    """A copy of a model without the layers that matter least, measured on rows of the train split.

    `by: influence` is the block influence of ShortGPT (Men et al. 2024, arXiv 2403.03853, equation 1): 1 minus the
    cosine between a layer's input and its output, mean over tokens that are not padding; one forward pass. `by: loss`
    leaves out one layer at a time and compares the predictions with those of the whole model (KL divergence; mean
    squared difference of values); labels are not needed. The layers before the one that is left out are not computed
    again, and it takes as many fewer rows as keep the cost below one forward pass over `rows`.

    It works where `copy_layers` does, which copies layers by a fixed rule. The first layer of models in which it is
    unlike the others (T5, ModernBERT) always stays.

    Attributes:
        layers: Layers to keep: how many, or the share of them, as a decimal (`0.5`). For an encoder-decoder model,
            layers of the encoder. Default: all; with a cost, as many as it allows.
        decoder_layers: The same for the decoder of an encoder-decoder model. Default: as `layers`; with a cost, as many
            as keep the proportion of the two.
        by: What is removed first: the layers with the least `influence` on the hidden states, or those whose loss is
            smallest when they are left out (`loss`).
        rows: Number of rows of the train split on which the layers are measured.
    """

    name: ClassVar[str] = "prune_depth"
    decided: ClassVar[tuple[str, ...]] = ("layers",)
    smaller: ClassVar[str] = "prune_width makes a student narrower."

    layers: Kept | None = None
    decoder_layers: Kept | None = None
    by: Literal["influence", "loss"] = "influence"
    rows: Annotated[int, Field(ge=1)] = 512

    def shapes(self, teacher: PretrainedConfig) -> Iterator[PruneDepth]:
        """Yield a student for each number of layers, from one to all, as `copy_layers` does."""
        fields = fields_of(self.whole_config(teacher), decoder=self.decoder_layers is not None)
        totals = {field: total for field, total in fields.items() if getattr(self, field) is None}
        yield from (self.with_shape(**layers) for layers in proportional_depths(totals))

    def config(self, teacher: PretrainedConfig) -> PretrainedConfig:
        """Return the configuration of the whole model, with fewer layers.

        Which layers these are is measured later: where layers differ in kind, the kinds here are those of layers that
        are spread evenly.

        Raises:
            UserError: The model does not have so many layers, or its weights are quantized.
        """
        whole = self.whole_config(teacher)
        counts = self.counts(whole)
        totals = fields_of(whole, decoder=self.decoder_layers is not None)
        return shortened(whole, {field: spread(count, totals[field]) for field, count in counts.items()})

    def counts(self, whole: PretrainedConfig) -> dict[str, int]:
        """Return, for each field that chooses layers, how many are kept.

        Raises:
            UserError: The model does not have so many.
        """
        self.check_shaped()
        wanted = {"layers": self.layers, "decoder_layers": self.decoder_layers or self.layers}
        totals = fields_of(whole, decoder=self.decoder_layers is not None)
        return {field: kept_of(field, wanted[field], total) for field, total in totals.items()}

    def made(self, teacher: PreTrainedModel, head: Head, rows: CalibrationRows) -> Made:
        """Measure the whole model's layers, and copy those that matter most.

        If nothing is to be removed, nothing is measured.

        Raises:
            UserError: As `config`; or the layers cannot be found or measured; or a layer would compute something else
                at its new position.
        """
        whole, labels = self.whole(teacher, head)
        counts = self.counts(whole.config)
        stacks = {field: layers for field, (_, layers) in find_stacks(whole).items()}
        scores = None
        if any(count < len(stacks[field]) for field, count in counts.items()):
            with measuring(whole):
                if self.by == "loss" and labels is None and parallel.is_first():
                    logger.warning(
                        "prune_depth: the head of '%s' is new and its predictions say little, so by: loss may "
                        "remove the wrong layers. Choose by: influence, or prune a model with a trained head.",
                        self.model,
                    )
                scores = self._measured(whole, rows)
        kept = {
            field: _chosen(layers, counts[field], scores.of[field] if scores else None, field)
            for field, layers in stacks.items()
        }
        student = some_layers(whole, kept, head, labels)
        facts: dict[str, Any] = sizes(whole, student)
        for field, layers in stacks.items():
            facts[field] = {"before": len(layers), "after": len(kept[field])}
            if scores:
                facts[f"removed {field}"] = sorted(set(range(len(layers))).difference(kept[field]))
                facts[f"{scores.what} of {field}"] = [float(f"{score:.4g}") for score in scores.of[field]]
        return Made(student, {**facts, **({"measured on rows": scores.rows} if scores else {})})

    def _measured(self, whole: PreTrainedModel, rows: CalibrationRows) -> LayerScores:
        return influence(whole, rows, self.rows) if self.by == "influence" else loss_without(whole, rows, self.rows)


def _chosen(layers: nn.ModuleList, count: int, scores: Sequence[float] | None, field: str) -> list[int]:
    """Return the layers that are kept: those unlike the others, then those with the highest scores."""
    if scores is None or count == len(layers):
        return list(range(len(layers)))
    shapes = [tuple((name, tuple(value.shape)) for name, value in layer.state_dict().items()) for layer in layers]
    usual = max(shapes, key=shapes.count)
    unlike = [number for number, shape in enumerate(shapes) if shape != usual]
    if len(unlike) > count:
        raise UserError(
            f"layers {unlike} are unlike the others and cannot be left out; wanted at least {len(unlike)} layers.",
            key=field,
        )
    others = sorted((number for number in range(len(layers)) if number not in unlike), key=lambda one: -scores[one])
    return sorted([*unlike, *others[: count - len(unlike)]])
