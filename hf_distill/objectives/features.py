"""What objectives on hidden states and attention have in common, as far as a recipe can tell."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar, Literal

from hf_distill.component import component
from hf_distill.errors import UserError
from hf_distill.models.layers import Part, Stack, States, read_stack
from hf_distill.objectives.base import PreparedObjective
from hf_distill.objectives.layer_mapping import Layers, layer_pairs

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from hf_distill.rows.base import Unit


@component
class StackObjective(PreparedObjective):
    """Compares what the two models compute on the way, token by token.

    A subclass returns a `feature_terms.FeatureTerm` from `prepare`, says in `pairs` what it compares, and may refuse
    two models in `check_stacks`. A term sums over the tokens that are not padding and takes the mean over pairs of
    layers (and, where it says so, over the entries of a state), so that a weight means the same for every width and
    depth.

    Attributes:
        part: Which side of an encoder-decoder model to compare; required for these models, not allowed for others. On
            the decoder only tokens with a label count. Default: none.
    """

    by_token: ClassVar[bool] = True
    needs_logits: ClassVar[bool] = False
    reaches_head: ClassVar[bool] = False

    # Which tokens of the teacher's layers it looks at, where it `reads` its states.
    states_of: ClassVar[Literal["tokens", "first", "last"]] = "tokens"

    part: Part | None = None

    @property
    def unit(self) -> Unit:  # type: ignore[override]
        """What the sum is divided by: tokens of the (encoder's) input, or the decoder's rows."""
        return "row" if self.part == "decoder" else "token"

    def stacks(self, student: PretrainedConfig, teacher: PretrainedConfig) -> tuple[Stack, Stack]:
        """Return what is compared of each model.

        Raises:
            UserError: `part` does not fit one of them.
        """
        return read_stack(student, self.part, "student"), read_stack(teacher, self.part, "teacher")

    @abstractmethod
    def pairs(self, student: Stack, teacher: Stack) -> tuple[tuple[int, int], ...]:
        """Return (student's index, teacher's index) of all that is compared; 0 is the output of the embeddings.

        Raises:
            UserError: An index is out of range.
        """

    def check(self, student: PretrainedConfig, teacher: PretrainedConfig) -> None:
        """Refuse two models that it cannot compare."""
        mine, theirs = self.stacks(student, teacher)
        self.pairs(mine, theirs)
        self.check_stacks(mine, theirs)

    def teacher_states(self, student: PretrainedConfig, teacher: PretrainedConfig) -> tuple[States, ...]:
        """Return the hidden states of the teacher that it reads."""
        if self.reads != "states":
            return ()
        mine, theirs = self.stacks(student, teacher)
        layers = {layer for _, layer in self.pairs(mine, theirs)}
        if getattr(self, "layers", None) == "similarity":  # all are measured before some are chosen
            layers = set(range(1, theirs.depth + 1))
        return tuple(States(layer, self.states_of, self.part) for layer in sorted(layers))

    def check_stacks(self, student: Stack, teacher: Stack) -> None:
        """Refuse two stacks whose layers cannot be compared.

        Raises:
            UserError: They cannot.
        """


@component
class FeatureObjective(StackObjective):
    """Compares layers of the student with layers of the teacher that a recipe chooses.

    Attributes:
        layers: Which layers to compare: a rule, or pairs `[[student, teacher], ...]`, where 0 is the output of the
            embeddings and 1 that of the first layer. `uniform`: the student's layer `i` with the teacher's `i * T / S`.
            `last`. `middle`. `skip`: as `uniform`, without the last. `tail`: counted from the end, without the last.
            `similarity`: each with the teacher's most similar layer, measured before training.
    """

    # The lowest index of a layer: 1 where there is nothing to compare in the output of the embeddings.
    lowest_layer: ClassVar[int] = 0

    layers: Layers = "uniform"

    def pairs(self, student: Stack, teacher: Stack) -> tuple[tuple[int, int], ...]:
        """Return the pairs of layers to compare, `(student, teacher)`."""
        return layer_pairs(self.layers, student.depth, teacher.depth, lowest=self.lowest_layer)


def check_heads(stack: Stack) -> int:
    """Return the number of attention heads.

    Raises:
        UserError: The model has none.
    """
    if stack.heads is None:
        raise UserError(
            f"{stack.name} has no attention heads, or not in every layer, so there is no attention to compare. Compare "
            "hidden states instead: {name: hidden}.",
            key="name",
        )
    return stack.heads
