"""Writing completions of prompts of uneven length, greedily: what each backend takes for a thousand of their tokens.

The model has the shape of SmolLM2-135M and random weights; a share of all tokens ends a text, so that completions are
uneven too. All write the same texts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.measure import Cost, Outcome, Variant, measuring
from benchmarks.step import tokenizer

# Completions: token ids.
Texts = list[list[int]]


@dataclass(frozen=True)
class Settings:
    """Sizes of the work.

    Attributes:
        vocabulary: Of the model.
        prompts: How many there are.
        longest: The longest prompt, in tokens.
        written: Largest number of tokens of a completion.
        ends: One token of so many ends a text.
        shape: Layers, width, heads, heads of keys and values, and width of the feed-forward layers.
    """

    vocabulary: int = 49152
    prompts: int = 48
    longest: int = 96
    written: int = 64
    ends: int = 40
    shape: tuple[int, int, int, int, int] = (30, 576, 9, 3, 1536)

    @classmethod
    def quick(cls) -> Settings:
        """Return sizes that take no time."""
        return cls(vocabulary=500, prompts=6, longest=12, written=8, ends=20, shape=(1, 32, 2, 1, 48))


def model_of(settings: Settings) -> Any:
    """Return the model that writes."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    layers, width, heads, shared, inner = settings.shape
    torch.manual_seed(1)
    made = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=settings.vocabulary,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=shared,
            intermediate_size=inner,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            initializer_range=0.1,  # else it writes the same token for ever
        )
    )
    made.generation_config.eos_token_id = list(range(2, settings.vocabulary, settings.ends))
    return made.eval()


def prompts_of(settings: Settings) -> Texts:
    """Return the prompts, of 8 tokens to the longest."""
    import torch

    generator = torch.Generator().manual_seed(7)
    least = min(8, settings.longest)
    lengths = torch.randint(least, settings.longest + 1, (settings.prompts,), generator=generator).tolist()
    return [torch.randint(3, settings.vocabulary, (length,), generator=generator).tolist() for length in lengths]


def _measured(write: Callable[[Settings, Any], Callable[[Texts], Texts]]) -> Callable[[Settings], Outcome]:
    """Return a variant's `run`: the cost for a thousand tokens that are in the texts."""

    def run(settings: Settings) -> Outcome:
        from transformers.utils import logging

        logging.set_verbosity_error()
        prompts = prompts_of(settings)
        writes = write(settings, model_of(settings))
        writes(prompts[:1])
        with measuring() as cost:
            texts = writes(prompts)
        tokens = sum(map(len, texts))
        same = sum(one * (place % 97) for place, one in enumerate(one for text in texts for one in text))
        found = {"loss": float(tokens), "texts": float(same)}
        return Outcome(
            Cost(1000 * cost.seconds / tokens, cost.peak_mib), found, "1,000 tokens written", counts={"tokens": tokens}
        )

    return run


def backend(name: str) -> Callable[[Settings, Any], Callable[[Texts], Texts]]:
    """A backend of hf_distill."""

    def write(settings: Settings, model: Any) -> Callable[[Texts], Texts]:
        from hf_distill.completions.backends import BACKENDS
        from hf_distill.completions.sampling import Sampling

        writer = BACKENDS[name]().open(model, tokenizer(settings))
        sampling = Sampling(settings.written, temperature=0.0)
        return lambda prompts: [list(one.ids) for one in writer.write(prompts, sampling, seed=0)]

    return write


def plain(settings: Settings, model: Any) -> Callable[[Texts], Texts]:
    """`model.generate` on all prompts at once, padded on the left."""
    import torch

    ends = set(model.generation_config.eos_token_id)

    def text(row: Sequence[int]) -> list[int]:
        end = next((place for place, token in enumerate(row) if token in ends), len(row))
        return list(row[: end + 1])

    def write(prompts: Texts) -> Texts:
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(one)) + one for one in prompts])
        mask = torch.tensor([[0] * (longest - len(one)) + [1] * len(one) for one in prompts])
        with torch.no_grad():
            made = model.generate(
                ids, attention_mask=mask, do_sample=False, max_new_tokens=settings.written, pad_token_id=0
            )
        return [text(row) for row in made[:, longest:].tolist()]

    return write


VARIANTS: dict[str, Variant] = {
    "generate": Variant(_measured(plain), "Transformers, `model.generate`", "texts"),
    "transformers": Variant(_measured(backend("transformers")), "**ours**, `backend: transformers`", "texts"),
    "continuous": Variant(
        _measured(backend("continuous_batching")), "**ours**, `backend: continuous_batching`", "texts"
    ),
}
BASELINE = "generate"
RATIOS = (
    ("written by transformers, of model.generate", "generate", "transformers"),
    ("written by continuous batching, of transformers", "transformers", "continuous"),
)
