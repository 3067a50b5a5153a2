"""The term of the loss on maps of attention."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hf_distill.objectives.feature_terms import FeatureTerm, Positions

if TYPE_CHECKING:
    from hf_distill.objectives.features import StackObjective


class AttentionTerm(FeatureTerm):
    """Squared difference or divergence of maps of attention, for every token that looks.

    Args:
        objective: What it computes.
        student: The model to train.
        teacher: The model to learn from.
        measure: `mse` or `kl`.
        mean: Whether the means over heads are compared, rather than heads (or groups of them).
    """

    compared: ClassVar[str] = "attentions"

    def __init__(
        self,
        objective: StackObjective,
        student: nn.Module,
        teacher: nn.Module | None,
        measure: Literal["mse", "kl"],
        *,
        mean: bool = False,
    ) -> None:
        super().__init__(objective, student, teacher)
        self.measure = measure
        self.mean = mean

    def watching(self) -> AbstractContextManager[None]:
        """Keep attention probabilities as they are before dropout."""
        watch: Any = _BeforeDropout()
        return watch  # type: ignore[no-any-return]

    def rows(self, layer: Tensor, positions: Positions) -> Tensor:
        """Return the rows of `(sequences, heads, queries, keys)` whose query counts, `(positions, heads, keys)`.

        Padding is no key: its probability is 0 in both models.
        """
        whole: Tensor = getattr(layer, "before_dropout", layer)
        return positions.select(whole.transpose(1, 2))

    def compare(self, place: int, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the mean over heads of the sum over keys, `(positions,)`; see `FeatureTerm.compare`."""
        heads = 1 if self.mean else student.shape[1]
        student, teacher = (
            maps.reshape(len(maps), heads, maps.shape[1] // heads, maps.shape[2]).mean(2) for maps in (student, teacher)
        )
        if self.measure == "mse":
            return (student - teacher).square().sum(-1).mean(-1)
        # A probability may underflow to 0, which is also that of keys to come and of padding.
        log_student = student.clamp(min=torch.finfo(student.dtype).tiny).log()
        return (torch.xlogy(teacher, teacher) - teacher * log_student).sum(-1).mean(-1)

    def reduce(self, losses: Tensor, positions: Positions) -> Tensor:
        """Sum `(positions,)` into `(batch,)`; of `mse` the mean over the tokens there are to look at."""
        if self.measure == "mse":
            losses = losses / positions.mask.sum(-1)[positions.sequences]
        return positions.sum(losses)


class _BeforeDropout(TorchFunctionMode):
    """Notes on what comes out of dropout what went in: models return their maps after it."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Iterable[type],
        arguments: tuple[Any, ...] = (),
        settings: Mapping[str, Any] | None = None,
    ) -> Any:
        settings = settings or {}
        found = function(*arguments, **settings)
        if function is F.dropout and isinstance(found, Tensor) and found.ndim == 4:
            whole = arguments[0] if arguments else settings["input"]
            if found is not whole:
                found.before_dropout = whole  # type: ignore[attr-defined]
        return found
