"""`model.generate` of Transformers: the backend that needs nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from hf_distill.completions.backends.base import Backend, Writer, check_room
from hf_distill.completions.backends.own_settings import warn_ignored
from hf_distill.completions.drawing import cut, draw, likeliest, softened, uniforms
from hf_distill.completions.ends import end_ids
from hf_distill.completions.mixture import Mixture
from hf_distill.completions.sampling import Completion, Sampling
from hf_distill.component import component
from hf_distill.models.inspection import base_model, evaluating
from hf_distill.models.patching import replaced
from hf_distill.models.tokenizers import vocabulary

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase


@component
class TransformersBackend(Backend):
    """`model.generate`: prompts of similar length together, padded on the left.

    A token follows from its probabilities, the seed, the number of its row and its place alone, so `batch_size` does
    not change what is written (but for rounding).

    Attributes:
        batch_size: Largest number of completions that are written at the same time. The keys and values of all their
            tokens are in memory.
    """

    name: ClassVar[str] = "transformers"
    searches: ClassVar[bool] = True
    mixes: ClassVar[bool] = True

    batch_size: Annotated[int, Field(ge=1)] = 64

    def open(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, beside: Mixture | None = None) -> Writer:
        """Return what writes with a model."""
        return GeneratingWriter(model, tokenizer, self.batch_size, beside)


class GeneratingWriter(Writer):
    """Writes with `model.generate`, of which it uses the loop and the cache: it draws the tokens itself.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        batch_size: Largest number of completions that are written at the same time.
        beside: A second model that takes part in every draw.
    """

    def __init__(
        self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, batch_size: int, beside: Mixture | None = None
    ) -> None:
        # PEFT's own `generate` would leave our settings in the model.
        self._model: Any = base_model(model)
        self._batch_size = batch_size
        self._beside = beside
        self._ends = end_ids(model, tokenizer)
        self._classes = vocabulary(tokenizer)
        # Hidden by the attention mask, so any token will do.
        self._pad = next((one for one in (tokenizer.pad_token_id, *self._ends) if one is not None), 0)
        warn_ignored(self._model)

    def write(self, prompts: Sequence[Sequence[int]], sampling: Sampling, seed: int) -> list[Completion]:
        """Return a completion of each prompt, in their order."""
        check_room(self._model.config, prompts, sampling)
        order = sorted(range(len(prompts)), key=lambda row: -len(prompts[row]))
        numbers = uniforms(seed, range(len(prompts)), sampling.max_new_tokens)
        found: dict[int, Completion] = {}
        with (
            torch.no_grad(),
            evaluating(self._model),
            # Not only an argument: `generate` fills its gaps from the model's.
            replaced(self._model, "generation_config", self._config(sampling)),
        ):
            for start in range(0, len(order), self._batch_size):
                rows = order[start : start + self._batch_size]
                written = self._batch([prompts[row] for row in rows], sampling, numbers[rows])
                found |= zip(rows, written, strict=True)
        return [found[row] for row in range(len(prompts))]

    def _config(self, sampling: Sampling) -> Any:
        """Return settings with nothing of the model's own: a penalty would change the distribution."""
        from transformers import GenerationConfig

        made: Any = GenerationConfig  # untyped
        return made(
            max_new_tokens=sampling.max_new_tokens,
            eos_token_id=list(self._ends) or None,
            pad_token_id=self._pad,
            use_cache=True,
            do_sample=False,  # `_Drawn` leaves one token to choose
            num_beams=sampling.num_beams,
        )

    def _batch(self, prompts: Sequence[Sequence[int]], sampling: Sampling, numbers: Tensor) -> Iterator[Completion]:
        from transformers import LogitsProcessorList

        longest = max(map(len, prompts))
        device = self._model.device
        ids = torch.tensor([[self._pad] * (longest - len(one)) + list(one) for one in prompts], device=device)
        mask = torch.tensor([[0] * (longest - len(one)) + [1] * len(one) for one in prompts], device=device)
        searches = sampling.num_beams > 1
        drawn: Any = _TokensOnly(self._classes) if searches else _Drawn(self._choice(sampling, mask), numbers)
        config = self._model.generation_config
        made = self._model.generate(
            input_ids=ids, attention_mask=mask, generation_config=config, logits_processor=LogitsProcessorList([drawn])
        )
        for row in made[:, longest:].tolist():
            end = next((place for place, token in enumerate(row) if token in self._ends), None)
            yield Completion(tuple(row if end is None else row[: end + 1]), ended=end is not None)

    def _choice(self, sampling: Sampling, mask: Tensor) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """Return what chooses the next tokens, given the texts, the logits and a number for each row."""
        width = self._classes  # columns past it are no tokens
        if self._beside is None:
            if not sampling.temperature:
                return lambda ids, logits, numbers: likeliest(logits[:, :width])
            return lambda ids, logits, numbers: draw(cut(softened(logits[:, :width], sampling), sampling), numbers)
        share, along = self._beside.share, self._beside.along(mask)

        def mixed(ids: Tensor, logits: Tensor, numbers: Tensor) -> Tensor:
            own, other = softened(logits[:, :width], sampling), softened(along(ids)[:, :width], sampling)
            return draw(cut(share * other + (1.0 - share) * own, sampling), numbers)

        return mixed


class _Drawn:
    """A logits processor that leaves only the token that was drawn.

    Args:
        choose: Chooses a token of each row, given the texts, the logits and a number for each row.
        numbers: For each row and token, in [0, 1), `(rows, tokens)`.
    """

    def __init__(self, choose: Callable[[Tensor, Tensor, Tensor], Tensor], numbers: Tensor) -> None:
        self._choose, self._numbers, self._place = choose, numbers, 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        # `generate` may compute a token more than it returns.
        place, self._place = min(self._place, self._numbers.shape[1] - 1), self._place + 1
        chosen = self._choose(input_ids, scores, self._numbers[:, place])
        return torch.full_like(scores, -torch.inf).scatter_(-1, chosen.unsqueeze(-1), 0.0)


class _TokensOnly:
    """A logits processor that leaves the columns that are tokens.

    Args:
        classes: Their number.
    """

    def __init__(self, classes: int) -> None:
        self._classes = classes

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores[:, self._classes :] = -torch.inf
        return scores
