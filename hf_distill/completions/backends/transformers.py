"""`model.generate` of Transformers: the backend that needs nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
from pydantic import Field

from hf_distill.completions.backends.base import Backend, Writer
from hf_distill.completions.ends import end_ids
from hf_distill.completions.sampling import Completion, Sampling
from hf_distill.component import component
from hf_distill.models.inspection import evaluating
from hf_distill.models.patching import replaced

if TYPE_CHECKING:
    from torch import nn
    from transformers import GenerationConfig, PreTrainedTokenizerBase


@component
class TransformersBackend(Backend):
    """`model.generate`: prompts of similar length together, padded on the left.

    Attributes:
        batch_size: Largest number of completions that are written at the same time.
    """

    name: ClassVar[str] = "transformers"

    batch_size: Annotated[int, Field(ge=1)] = 64

    def open(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> Writer:
        """Return what writes with a model."""
        return GeneratingWriter(model, tokenizer, self.batch_size)


class GeneratingWriter(Writer):
    """Writes with `model.generate`.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        batch_size: Largest number of completions that are written at the same time.
    """

    def __init__(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, batch_size: int) -> None:
        self._model: Any = model
        self._batch_size = batch_size
        self._ends = end_ids(model, tokenizer)
        # Hidden by the attention mask, so any token will do.
        self._pad = next((one for one in (tokenizer.pad_token_id, *self._ends) if one is not None), 0)

    def write(self, prompts: Sequence[Sequence[int]], sampling: Sampling, seed: int) -> list[Completion]:
        """Return a completion of each prompt, in their order."""
        device = self._model.device
        order = sorted(range(len(prompts)), key=lambda row: -len(prompts[row]))
        found: dict[int, Completion] = {}
        with (
            torch.no_grad(),
            evaluating(self._model),
            replaced(self._model, "generation_config", self._config(sampling)),
            torch.random.fork_rng([device] if device.type == "cuda" else []),
        ):
            torch.manual_seed(seed)
            for start in range(0, len(order), self._batch_size):
                rows = order[start : start + self._batch_size]
                found |= zip(rows, self._batch([prompts[row] for row in rows]), strict=True)
        return [found[row] for row in range(len(prompts))]

    def _config(self, sampling: Sampling) -> GenerationConfig:
        """Return the settings of the draws, and nothing of the model's own: a penalty would change the distribution."""
        from transformers import GenerationConfig

        how: dict[str, Any] = {"do_sample": False}
        if sampling.temperature:
            how = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
        return GenerationConfig(  # type: ignore[no-untyped-call]
            max_new_tokens=sampling.max_new_tokens,
            eos_token_id=list(self._ends) or None,
            pad_token_id=self._pad,
            use_cache=True,
            **how,
        )

    def _batch(self, prompts: Sequence[Sequence[int]]) -> Iterator[Completion]:
        longest = max(map(len, prompts))
        ids = torch.tensor([[self._pad] * (longest - len(one)) + list(one) for one in prompts])
        mask = torch.tensor([[0] * (longest - len(one)) + [1] * len(one) for one in prompts])
        device = self._model.device
        made = self._model.generate(input_ids=ids.to(device), attention_mask=mask.to(device))
        for row in made[:, longest:].tolist():
            end = next((place for place, token in enumerate(row) if token in self._ends), None)
            yield Completion(tuple(row if end is None else row[: end + 1]), ended=end is not None)
