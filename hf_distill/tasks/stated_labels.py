"""Read `data.labels` of a recipe: names in order, or a mapping of labels to names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hf_distill.data.label_names import real_names, shorten
from hf_distill.errors import UserError


@dataclass(frozen=True)
class Stated:
    """What a recipe says about labels.

    Attributes:
        names: Names of the labels 0, 1, 2, ...; None if the recipe has no list.
        meanings: Label in the data, as text -> name of its class; empty if the recipe has no mapping.
        nothing: Labels, as text, that mean "no label".
    """

    names: tuple[str, ...] | None = None
    meanings: Mapping[str, str] = field(default_factory=dict)
    nothing: frozenset[str] = frozenset()

    @classmethod
    def of(cls, given: Sequence[str] | Mapping[str, str | None] | None) -> Stated:
        """Return what `data.labels` says.

        Raises:
            UserError: A name is twice in the list.
        """
        if isinstance(given, Mapping):
            meanings = {label: name for label, name in given.items() if name is not None}
            return cls(meanings=meanings, nothing=frozenset(given) - frozenset(meanings))
        names = real_names(given or ())
        if names and len(set(names)) < len(names):
            raise UserError(f"a name is twice in {shorten(names)}.", key="labels")
        return cls(names=names)

    @property
    def way_out(self) -> str:
        """Hint for a label outside the known classes, with a leading space; empty if the recipe has a mapping."""
        if self.meanings or self.nothing:
            return ""
        return " Map it to a class: data: {labels: {LABEL: NAME}}, with null in place of NAME if it is not a label."

    @property
    def known(self) -> frozenset[str]:
        """Labels and names that the recipe mentions; they are classes without doubt."""
        return frozenset(self.names or ()) | frozenset(self.meanings) | frozenset(self.meanings.values())


def spell(label: Any) -> str:
    """Return a label as text, as a recipe writes it.

    >>> spell(1), spell(1.0), spell(True), spell("1")
    ('1', '1', 'true', '1')
    """
    if isinstance(label, bool):
        return str(label).lower()
    return str(int(label)) if isinstance(label, float) and label.is_integer() else str(label)
