"""The base class of students that can be asked for by what they may cost."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import Field

from hf_distill.component import component
from hf_distill.errors import UserError
from hf_distill.mistakes import attributes
from hf_distill.students.base import Student
from hf_distill.students.cost import Cost, Kind, number_of

KINDS: tuple[Kind, ...] = ("size", "parameters", "latency")
Sized = TypeVar("Sized", bound="SizedStudent")


@component
class SizedStudent(Student):
    """Base class of students that can be asked for by what they may cost, in place of their shape.

    A subclass defines `shapes`. The run chooses the largest shape that does not cost more, before weights are loaded,
    and writes it into the resolved recipe: a resumed run does not choose again.

    Attributes:
        size: Share of the teacher's parameters that the student may have, such as `0.5`. Default: none.
        parameters: Number of parameters that the student may have, such as `20M` or `1.2B`. Default: no limit.
        latency: Share of the teacher's time for a forward pass over one example that the student may take, such as
            `0.5`. It is measured on this machine when the run begins, with random weights. Default: none.
        chosen_for: The cost by which a run chose the shape. The run writes it into the resolved recipe; leave it out of
            yours. Default: nothing.
    """

    # Fields of the shape, which a cost decides: both cannot be given.
    decided: ClassVar[tuple[str, ...]] = ()
    # Fields of which a recipe gives at least one; empty if all may be left out.
    needs_one_of: ClassVar[tuple[str, ...]] = ()
    # What to do where the smallest shape costs too much, for messages.
    smaller: ClassVar[str] = ""

    size: Annotated[float, Field(gt=0, le=1)] | None = None
    parameters: Annotated[int, Field(ge=1)] | str | None = None
    latency: Annotated[float, Field(gt=0, lt=1)] | None = None
    chosen_for: dict[str, Any] = Field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a cost beside another one or beside the shape that it decides, and an entry without either."""
        if isinstance(self.parameters, str):
            try:
                number_of(self.parameters)
            except UserError as error:
                raise UserError(*error.mistakes, key="parameters") from error
        asked = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(asked) > 1:
            raise UserError(f"given together with {asked[0]}. Keep one of the two.", key=asked[1])
        for field in self.decided if asked else ():
            if getattr(self, field) is not None:
                raise UserError(f"given together with {asked[0]}, which decides it. Keep one of the two.", key=field)
        if self.needs_one_of and all(getattr(self, field) is None for field in self.needs_one_of):
            field = self.needs_one_of[0]
            said = attributes(type(self))[field].partition(". ")[0]
            raise UserError(
                f"missing. Wanted: {said}; or what the student may cost: size: 0.5, parameters: 20M or latency: 0.5.",
                key=field,
            )

    @property
    def cost(self) -> Cost | None:
        """What it may cost; None if the entry says which shape it has."""
        return next((Cost(kind, value) for kind in KINDS if (value := getattr(self, kind)) is not None), None)

    def with_shape(self: Sized, **fields: Any) -> Sized:
        """Return this entry with a shape in place of the cost.

        Args:
            **fields: Values of the fields that describe the shape.
        """
        cost = self.cost
        chosen_for: dict[str, Any] = {} if cost is None else {cost.kind: cost.value}
        return replace(self, size=None, parameters=None, latency=None, chosen_for=chosen_for, **fields)

    def check_shaped(self) -> None:
        """Refuse an entry whose shape is not chosen yet.

        Raises:
            UserError: It is asked for by its cost.
        """
        if (cost := self.cost) is not None:
            raise UserError(
                "only a run of a recipe chooses the shape of its student by this. Wanted here: "
                f"{' or '.join(self.decided or ('the shape',))}.",
                key=cost.kind,
            )
