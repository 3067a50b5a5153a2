"""Terms of the loss that compare layers: which tokens count, which layers are paired, learned projections."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from hf_distill.data.label_names import IGNORED
from hf_distill.models.target_rows import upcast
from hf_distill.objectives.base import Term
from hf_distill.objectives.layer_mapping import Similarity
from hf_distill.objectives.projection import learned_projection

if TYPE_CHECKING:
    from hf_distill.objectives.base import Comparison
    from hf_distill.objectives.features import StackObjective


@dataclass(frozen=True)
class Positions:
    """The tokens of a batch that count.

    Attributes:
        mask: Which, bool `(sequences, tokens)`.
        comparison: The batch.
    """

    mask: Tensor
    comparison: Comparison

    @cached_property
    def places(self) -> tuple[Tensor, Tensor]:
        """The sequence of every position, and which of its tokens that is, `(positions,)` each.

        The device is asked once how many there are, where every selection by the mask would ask again.
        """
        sequences, tokens = self.mask.nonzero().unbind(-1)
        return sequences, tokens

    @property
    def sequences(self) -> Tensor:
        """The sequence of every position, `(positions,)`."""
        return self.places[0]

    def select(self, values: Tensor) -> Tensor:
        """Return the rows that count, `(sequences, tokens, ...)` -> `(positions, ...)`, in float32 or better.

        Picked out rather than multiplied by 0: whatever a model computes for padding, NaN included, is gone.
        """
        # The layers of a teacher that is spread over several devices are where it computed them.
        sequences, tokens = (index.to(values.device) for index in self.places)
        rows = values[sequences, tokens].to(self.mask.device)
        return upcast(rows)

    def sum(self, values: Tensor) -> Tensor:
        """Sum a value per position into `(batch,)`."""
        return self.comparison.fold(values.new_zeros(len(self.mask)).index_add(0, self.sequences, values))


class FeatureTerm(Term):
    """A term that compares pairs of layers position by position; a subclass defines `compare`.

    Args:
        objective: What it computes.
        student: The model to train.
        teacher: The model to learn from.
        projected: Whether the student's states pass a learned projection; None: where the widths differ. It is a matrix
            without bias for each pair, from the student's width to the teacher's, at the start uniform within
            `sqrt(6 / (student's width + teacher's))` (Glorot and Bengio 2010), drawn from torch's seed.

    Attributes:
        pairs: (student's index, teacher's index) of all that is compared; index 0 is the output of the embeddings.
        projections: One for each pair; empty where there is none.
        student_stack: Depth, width and heads of what is compared.
        teacher_stack: The same of the teacher.

    Raises:
        UserError: The objective does not fit the two models.
    """

    # Which of the models' outputs is compared.
    compared: ClassVar[str] = "hidden_states"

    def __init__(
        self,
        objective: StackObjective,
        student: nn.Module,
        teacher: nn.Module | None,
        *,
        projected: bool | None = False,
    ) -> None:
        super().__init__(objective)
        if teacher is None:
            raise ValueError(f"'{objective.name}' needs a teacher.")
        mine: Any = student.config
        theirs: Any = teacher.config
        objective.check(mine, theirs)
        self.part = objective.part
        self.student_stack, self.teacher_stack = objective.stacks(mine, theirs)
        self.pairs = objective.pairs(self.student_stack, self.teacher_stack)
        self.projections = nn.ModuleList()
        widths = self.student_stack.width, self.teacher_stack.width
        for _ in self.pairs if projected is not False else ():
            if (projection := learned_projection(*widths, always=bool(projected))) is not None:
                self.projections.append(projection)
        self.needs_data = getattr(objective, "layers", None) == "similarity"
        if self.needs_data:
            self.similarity = Similarity(self.student_stack.depth, self.teacher_stack.depth)
            # What was measured is part of the training: resumed, it must not be measured again on a trained student.
            self.register_buffer("chosen_layers", torch.tensor(self.pairs))
            self.register_load_state_dict_post_hook(  # type: ignore[no-untyped-call]
                lambda term, _: term._read_chosen()
            )

    def _read_chosen(self) -> None:
        chosen: Any = self.chosen_layers
        self.pairs = tuple((int(mine), int(theirs)) for mine, theirs in chosen.tolist())

    def observe(self, comparison: Comparison) -> None:
        """Keep some tokens of every layer."""
        mine = range(1, self.student_stack.depth + 1)
        theirs = range(1, self.teacher_stack.depth + 1)
        self.similarity.add(
            self.layers_of(comparison.student, "student", mine, "hidden_states"),
            self.layers_of(comparison.teacher, "teacher", theirs, "hidden_states"),
            self.positions(comparison).mask,
        )

    def settle(self) -> str | None:
        """Choose the layers, and show what was measured."""
        self.pairs, text = self.similarity.settle(self.pairs)
        chosen: Any = self.chosen_layers
        chosen.copy_(torch.tensor(self.pairs))
        return text

    def positions(self, comparison: Comparison) -> Positions:
        """Return which tokens count: those that are not padding; in a decoder, those that have a label.

        Raises:
            ValueError: The decoder is compared, and the batch has no labels.
        """
        if self.part != "decoder":
            return Positions(comparison.tokens, comparison)
        labels = comparison.inputs.get("labels")
        if labels is None:
            raise ValueError(
                f"'{self.objective.name}' on a decoder counts tokens with a label, and here are no labels."
            )
        return Positions(labels != IGNORED, comparison)

    def layers_of(
        self, output: Mapping[str, Any] | None, whose: str, layers: Iterable[int], kind: str | None = None
    ) -> list[Tensor]:
        """Return what a model gave for some layers. There may be others that it does not give, as a cache does.

        Args:
            output: Of the model.
            whose: `student` or `teacher`.
            layers: Their indices; of `hidden_states` 0 is the output of the embeddings.
            kind: `hidden_states` or `attentions`; what the term compares, if left out.

        Raises:
            ValueError: The model does not give it, or not for these layers.
        """
        kind = kind or self.compared
        stack = self.student_stack if whose == "student" else self.teacher_stack
        key = f"{self.part}_{kind}" if self.part else kind
        found: Any = (None if output is None else output.get(key)) or ()
        first = int(kind != "hidden_states")
        count = stack.depth + 1 - first
        wanted = [found[layer - first] for layer in layers] if len(found) == count else []
        if not wanted or any(one is None for one in wanted):
            what = f"{len(found)} instead of {count}" if len(found) not in (0, count) else "none"
            raise ValueError(
                f"'{self.objective.name}' needs {kind.replace('_', ' ')} of all {stack.depth} layers, and {stack.name} "
                f"gives {what}. Use an objective on the outputs, such as kl, or another model."
            )
        return wanted

    def forward(self, comparison: Comparison) -> Tensor:
        """Return the sum over the positions of every example, of the mean over pairs of layers, `(batch,)`."""
        positions = self.positions(comparison)
        mine, theirs = zip(*self.pairs, strict=True)
        ours = self.layers_of(comparison.student, "student", mine)
        others = self.layers_of(comparison.teacher, "teacher", theirs)
        losses = [
            self.compare(place, self.rows(student, positions), self.rows(teacher.detach(), positions))
            for place, (student, teacher) in enumerate(zip(ours, others, strict=True))
        ]
        return self.reduce(torch.stack(losses).mean(0), positions)

    def rows(self, layer: Tensor, positions: Positions) -> Tensor:
        """Return what is compared of a layer, `(positions, ...)`, float32 or better."""
        return positions.select(layer)

    def reduce(self, losses: Tensor, positions: Positions) -> Tensor:
        """Sum `(positions,)` into `(batch,)`."""
        return positions.sum(losses)

    def projected(self, place: int, states: Tensor) -> Tensor:
        """Return the student's states in the teacher's width."""
        if not self.projections:
            return states
        projection = self.projections[place]
        weight: Any = projection.weight
        found: Tensor = projection(states.to(weight.dtype))
        return found.to(states.dtype)

    def compare(self, place: int, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the loss of every position, `(positions,)`.

        Args:
            place: Which of the pairs of layers.
            student: `(positions, width)`.
            teacher: The same of the teacher, without gradient.
        """
        raise NotImplementedError
