"""Continuous batching of Transformers: a text that has ended makes room for the next one at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
from pydantic import Field

from hf_distill.completions.backends.base import Backend, Writer, check_room
from hf_distill.completions.backends.own_settings import warn_ignored
from hf_distill.completions.ends import end_ids
from hf_distill.completions.sampling import Completion, Sampling
from hf_distill.component import component
from hf_distill.errors import UserError, first_line
from hf_distill.models.inspection import base_model, evaluating
from hf_distill.models.tokenizers import vocabulary

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from hf_distill.completions.mixture import Mixture

# Tokens of a page of the cache.
_PAGE = 32


@component
class ContinuousBatching(Backend):
    """Continuous batching of Transformers (`generate_batch`): a text that has ended makes room for the next at once.

    Without padding, so it gains where lengths differ much. The same seed and prompts give the same completions, but
    others than `transformers` does, unless `temperature` is 0: the library draws the tokens.

    Attributes:
        cache_tokens: Most tokens whose keys and values are in memory at once; prompts that do not fit wait.
        batch_tokens: Most tokens that one forward pass reads.
    """

    name: ClassVar[str] = "continuous_batching"

    cache_tokens: Annotated[int, Field(ge=256)] = 65536
    batch_tokens: Annotated[int, Field(ge=16)] = 1024

    def open(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, beside: Mixture | None = None) -> Writer:
        """Return what writes with a model."""
        inside: Any = base_model(model)
        if beside is not None:
            raise UserError(
                "continuous_batching runs one model, and by: mixture draws from two. Take backend: transformers.",
                key="backend",
            )
        if not hasattr(inside, "init_continuous_batching"):
            raise UserError(
                f"{type(inside).__name__} has no continuous batching. Take backend: transformers.",
                key="backend",
            )
        return ContinuousWriter(inside, tokenizer, self.cache_tokens, self.batch_tokens)


class ContinuousWriter(Writer):
    """Writes with a manager of continuous batching, which is opened anew each time: the weights have changed.

    Args:
        model: The model, without wrappers.
        tokenizer: Its tokenizer.
        cache_tokens: Most tokens whose keys and values are in memory at once.
        batch_tokens: Most tokens that one forward pass reads.
    """

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase, cache_tokens: int, batch_tokens: int) -> None:
        self._model = model
        self._cache_tokens, self._batch_tokens = cache_tokens, batch_tokens
        self._ends = end_ids(model, tokenizer)
        width = model.config.get_text_config().vocab_size
        self._no_tokens = list(range(vocabulary(tokenizer), width))
        warn_ignored(model)

    def write(self, prompts: Sequence[Sequence[int]], sampling: Sampling, seed: int) -> list[Completion]:
        """Return a completion of each prompt, in their order."""
        check_room(self._model.config, prompts, sampling)
        device = self._model.device
        # The library seeds PyTorch's generators, in a thread of its own.
        with (
            torch.no_grad(),
            evaluating(self._model),
            torch.random.fork_rng([device] if device.type == "cuda" else []),
        ):
            written = self._generated([list(one) for one in prompts], sampling, seed)
        return [Completion(tuple(ids), ended=ids[-1] in self._ends) for ids in written]

    def _generated(self, prompts: list[list[int]], sampling: Sampling, seed: int) -> list[list[int]]:
        manager = self._model.init_continuous_batching(
            generation_config=self._config(sampling),
            continuous_batching_config=self._sizes(prompts, sampling, seed),
        )
        # Before the start: which prompts share a forward pass, and so the draws, must not depend on the time.
        names = manager.add_requests(prompts, max_new_tokens=sampling.max_new_tokens)
        found: dict[str, list[int]] = {}
        manager.start()
        try:
            while len(found) < len(names):
                one = manager.get_result(timeout=1.0)
                if one is None and not manager.is_running():
                    raise self._failed(manager.background_thread_status.fatal_error)
                if one is not None and one.error is not None:
                    raise self._failed(one.error)
                if one is not None and one.is_finished():
                    found[one.request_id] = one.generated_tokens
        finally:
            manager.stop(block=True)  # which also puts the attention back
            manager.destroy()
        return [found[name] for name in names]

    def _failed(self, error: Any) -> UserError:
        said = first_line(error) if isinstance(error, BaseException) else str(error)
        return UserError(
            f"continuous batching of {type(self._model).__name__} failed: {said}. Take backend: transformers.",
            key="backend",
        )

    def _config(self, sampling: Sampling) -> Any:
        """Return settings with nothing of the model's own: a penalty would change the distribution."""
        from transformers import GenerationConfig

        how: dict[str, Any] = {"do_sample": False}
        if sampling.temperature:
            how = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
        made: Any = GenerationConfig  # untyped
        return made(
            max_new_tokens=sampling.max_new_tokens,
            eos_token_id=list(self._ends) or -1,
            suppress_tokens=self._no_tokens or None,
            **how,
        )

    def _sizes(self, prompts: Sequence[Sequence[int]], sampling: Sampling, seed: int) -> Any:
        from transformers import ContinuousBatchingConfig

        pages = sorted(-(-(len(one) + sampling.max_new_tokens) // _PAGE) for one in prompts)
        return ContinuousBatchingConfig(
            page_size=_PAGE,
            # At least what the longest text needs, with a page to spare for the library.
            num_blocks=max(min(sum(pages), self._cache_tokens // _PAGE), pages[-1]) + 1,
            max_batch_tokens=self._batch_tokens,
            max_requests_per_batch=len(prompts),
            seed=seed % 2**63,
            auto_switch_to_flash=False,  # the student's own attention, which it trains with
            use_async_batching=False,
            use_cuda_graph=False,
        )
