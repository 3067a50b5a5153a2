"""What a recipe says of labels (`data.labels`): names in order, or what each label means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hf_distill.data.label_names import real_names, shorten
from hf_distill.errors import UserError


@dataclass(frozen=True)
class Stated:
    """What a recipe says of labels.

    Attributes:
        names: Of the labels 0, 1, 2, ...; None where it gives no list.
        meanings: Label as the data has it, as text -> name of its class; where the recipe gives a mapping.
        nothing: Labels, as text, that stand for "no label".
    """

    names: tuple[str, ...] | None = None
    meanings: Mapping[str, str] = field(default_factory=dict)
    nothing: frozenset[str] = frozenset()

    @classmethod
    def of(cls, given: Sequence[str] | Mapping[str, str | None] | None) -> Stated:
        """Read `data.labels`.

        Raises:
            UserError: A name stands twice in a list.
        """
        if isinstance(given, Mapping):
            meanings = {label: name for label, name in given.items() if name is not None}
            return cls(meanings=meanings, nothing=frozenset(given) - frozenset(meanings))
        names = real_names(given or ())
        if names and len(set(names)) < len(names):
            raise UserError(f"a name stands twice in {shorten(names)}.", key="labels")
        return cls(names=names)

    @property
    def way_out(self) -> str:
        """What to do with a label that is none of the known classes, after a space; nothing where it was done."""
        if self.meanings or self.nothing:
            return ""
        return " Say what it means: data: {labels: {LABEL: NAME}}, null in place of a name where it is no label."

    @property
    def known(self) -> frozenset[str]:
        """Labels that the recipe speaks of: nobody has to be asked whether these are classes."""
        return frozenset(self.names or ()) | frozenset(self.meanings) | frozenset(self.meanings.values())


def spell(label: Any) -> str:
    """Return a label as a recipe writes it.

    >>> spell(1), spell(1.0), spell(True), spell("1")
    ('1', '1', 'true', '1')
    """
    if isinstance(label, bool):
        return str(label).lower()
    return str(int(label)) if isinstance(label, float) and label.is_integer() else str(label)
