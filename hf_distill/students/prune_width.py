"""A student with fewer heads, neurons and hidden channels than the model it is made of: those that matter least go."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from hf_distill.component import component
from hf_distill.students.base import Made, MeasuredStudent
from hf_distill.students.copied import CopiedStudent, measuring, sizes
from hf_distill.students.importance import measure
from hf_distill.students.narrowing import choose, narrowed
from hf_distill.students.sized import SizedStudent
from hf_distill.students.widths import Kept, Widths, architecture_of, narrower, widths_of, with_widths

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PretrainedConfig, PreTrainedModel

    from hf_distill.models.calibration import CalibrationRows
    from hf_distill.models.loading import Head


@component
class PruneWidth(CopiedStudent, SizedStudent, MeasuredStudent):
    """A narrower copy of a model, without the attention heads, neurons and hidden channels that matter least.

    The importance of Minitron (Muralidharan et al. 2024, arXiv 2407.14679, section 2.2), measured in one forward pass
    over some rows of the train split: of a head, the length of its output; of a neuron, its activation; of a hidden
    channel, its value after each normalisation, summed over all of them. Padding does not count. Each layer loses
    equally many heads and neurons, so a plain configuration describes the student. The width of a head stays.

    It works for models of the types bert, camembert, distilbert, roberta, xlm-roberta, llama, mistral, qwen2 and qwen3.
    Where several heads share a key and a value (grouped-query attention), each of these keeps equally many heads, and
    all keys and values stay. In BERT's family the heads together are as wide as the hidden states, so heads go only
    with the hidden width: `hidden: 0.5` keeps half of the heads too.

    Attributes:
        heads: Attention heads of a layer to keep: how many, or the share of them, as a decimal (`0.5`). Default: all;
            in BERT's family as many as fit `hidden`. With a cost, all three widths keep their proportions.
        intermediate: Neurons between a layer's two linear maps to keep: how many, or the share of them. Default: all.
        hidden: Width of the hidden states to keep: a number, or the share of it. Default: all.
        rows: Number of rows of the train split on which importance is measured.
        over_tokens: How importance is aggregated over the tokens of a row: the `mean` of absolute values, or `l2`, the
            root of the sum of squares.
        over_rows: The same over rows.
    """

    name: ClassVar[str] = "prune_width"
    decided: ClassVar[tuple[str, ...]] = ("heads", "intermediate", "hidden")
    smaller: ClassVar[str] = "from_config also has fewer layers, from random weights."

    heads: Kept | None = None
    intermediate: Kept | None = None
    hidden: Kept | None = None
    rows: Annotated[int, Field(ge=1)] = 512
    over_tokens: Literal["mean", "l2"] = "mean"
    over_rows: Literal["mean", "l2"] = "l2"

    def widths(self, whole: PretrainedConfig) -> Widths:
        """Return the widths of the student.

        Raises:
            UserError: The whole model has no such widths, or no model can have those that are asked for.
        """
        self.check_shaped()
        architecture = architecture_of(whole)
        return narrower(
            widths_of(whole), architecture, heads=self.heads, intermediate=self.intermediate, hidden=self.hidden
        )

    def shapes(self, teacher: PretrainedConfig) -> Iterator[PruneWidth]:
        """Yield students with all widths in proportion, from the fewest heads that are possible to all of them."""
        whole = widths_of(self.whole_config(teacher))
        unit = whole.groups if whole.groups < whole.heads else 1
        for heads in range(unit, whole.heads + 1, unit):
            hidden, intermediate = (round(width * heads / whole.heads) for width in (whole.hidden, whole.intermediate))
            yield self.with_shape(heads=heads, intermediate=intermediate, hidden=hidden)

    def config(self, teacher: PretrainedConfig) -> PretrainedConfig:
        """Return the configuration of the whole model, with smaller widths.

        Raises:
            UserError: As `widths`; or the model's weights are quantized.
        """
        whole = self.whole_config(teacher)
        return with_widths(whole, self.widths(whole))

    def made(self, teacher: PreTrainedModel, head: Head, rows: CalibrationRows) -> Made:
        """Measure the whole model, and copy the parts that matter most.

        If nothing is to be removed, nothing is measured.

        Raises:
            UserError: As `config`; or the labels of the copied head are not the task's.
        """
        whole, labels = self.whole(teacher, head)
        before, after = widths_of(whole.config), self.widths(whole.config)
        importance = None
        if after != before:
            with measuring(whole):
                importance = measure(whole, rows.batches(whole, self.rows), self.over_tokens, self.over_rows)
        chosen = choose(importance, before, after, layers=whole.config.num_hidden_layers)
        student = narrowed(whole, with_widths(whole.config, after), chosen, head, labels)
        facts = {
            **sizes(whole, student),
            **{
                field: {"before": getattr(before, field), "after": getattr(after, field)}
                for field in ("heads", "intermediate", "hidden")
            },
        }
        if importance is not None:
            facts |= {"measured on rows": importance.rows, **chosen.removed(before)}
        return Made(student, facts)
