"""The base class of collators that wrap another collator and add to its batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

from typing_extensions import Self  # in typing from Python 3.11 on

Collate = Callable[[list[Any]], Mapping[str, Any]]


class AroundCollator(ABC):
    """A collator that wraps another one and adds to its batches; it always runs last."""

    @abstractmethod
    def around(self, change: Callable[[Collate], Collate]) -> Self:
        """Return a copy of this collator that wraps another inner collator.

        Args:
            change: Called with the present inner collator; returns the one that replaces it.
        """
