"""Collators around collators: what makes batches, and what others add to them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

from typing_extensions import Self  # in typing from Python 3.11 on

Collate = Callable[[list[Any]], Mapping[str, Any]]


class AroundCollator(ABC):
    """A collator that adds to the batches of another one, and comes last whatever else is done to them."""

    @abstractmethod
    def around(self, change: Callable[[Collate], Collate]) -> Self:
        """Return the same around a changed collator.

        Args:
            change: Makes the collator inside into the one that replaces it.
        """
