"""Asking a language model with a prompt: what it saves to compute the beginning of all prompts once.

Each variant scores the same verbalizers after the same prompts: some tokens that all prompts share (instructions,
solved examples), then a text. The `loss` is the mean entropy of the labels, in which all variants must agree.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.measure import Cost, Outcome, Variant, measuring
from benchmarks.step import Settings as StepSettings
from benchmarks.step import model as random_model

ONE = ((11,), (12,))
SEVERAL = ((11, 13, 14), (12, 15, 16))


@dataclass(frozen=True)
class Settings:
    """Sizes of the work.

    Attributes:
        vocabulary: Of the Llama.
        teacher: Its layers, width and width of the feed-forward layers.
        prompt: Tokens that all prompts share.
        text: Tokens of a text, on average; the lengths go from half of it to half more.
        batch: Prompts at a time.
        batches: How many; the shared tokens are computed once for all of them.
    """

    vocabulary: int = 32000
    teacher: tuple[int, int, int] = (8, 512, 1408)
    prompt: int = 200
    text: int = 30
    batch: int = 16
    batches: int = 4

    @classmethod
    def quick(cls) -> Settings:
        """Return sizes that take no time."""
        return cls(vocabulary=500, teacher=(2, 64, 128), prompt=8, text=4, batch=2, batches=2)


def texts(settings: Settings) -> list[tuple[Any, Any]]:
    """Return the tokens and the mask of each batch of texts, padded on the right."""
    import torch

    torch.manual_seed(7)
    found = []
    for _ in range(settings.batches):
        longest = settings.text + settings.text // 2
        lengths = torch.randint(settings.text // 2, longest + 1, (settings.batch, 1))
        mask = (torch.arange(longest) < lengths).long()
        found.append((torch.randint(20, settings.vocabulary, mask.shape) * mask, mask))
    return found


def shared(settings: Settings) -> list[int]:
    """Return the tokens with which all prompts begin."""
    return [20 + at % (settings.vocabulary - 20) for at in range(settings.prompt)]


def scoring(verbalizers: tuple[tuple[int, ...], ...], how: str) -> Callable[[Settings], Outcome]:
    """Return a variant's `run`.

    Args:
        verbalizers: Token ids of each label's word.
        how: `once` computes the shared tokens once, `whole` in every prompt; `loop` runs prompt and verbalizer whole,
            one verbalizer after the other, with the logits of all positions, as a short script does.
    """

    def run(settings: Settings) -> Outcome:
        import torch

        from hf_distill.models.continuations import Continuations

        model = random_model(StepSettings(vocabulary=settings.vocabulary), settings.teacher, 2).eval()
        before = shared(settings)
        score: Any = Continuations(model, verbalizers, [before if how == "once" else []])
        work = texts(settings)
        if how != "once":
            work = [(_after(before, ids), _after([1] * len(before), mask)) for ids, mask in work]
        if how == "loop":
            score = Loop(model, verbalizers)
        with torch.no_grad(), measuring() as cost:
            start = time.process_time()
            found = torch.cat([score(*batch) for batch in work])
            seconds = time.process_time() - start
        entropy = torch.distributions.Categorical(logits=found).entropy().mean().item()
        return Outcome(Cost(seconds / settings.batches, cost.peak_mib), {"loss": entropy}, "batch of prompts")

    return run


@dataclass(frozen=True)
class Loop:
    """Scores each verbalizer by a pass over whole sequences, padded on the right."""

    model: Any
    verbalizers: tuple[tuple[int, ...], ...]

    def __call__(self, ids: Any, mask: Any) -> Any:
        """Return the scores, `(batch, verbalizers)`."""
        import torch

        scores, lengths = [], mask.sum(-1, keepdim=True)
        for tokens in self.verbalizers:
            places = lengths + torch.arange(len(tokens))
            wanted = torch.tensor(tokens).expand(len(ids), -1)
            whole = torch.cat([ids, torch.zeros_like(wanted)], -1).scatter(1, places, wanted)
            seen = torch.cat([mask, torch.zeros_like(wanted)], -1).scatter(1, places, 1)
            logits = self.model(input_ids=whole, attention_mask=seen, use_cache=False).logits.log_softmax(-1)
            before = logits.gather(1, (places - 1).unsqueeze(-1).expand(-1, -1, logits.shape[-1]))
            scores.append(before.gather(-1, wanted.unsqueeze(-1))[..., 0].sum(-1))
        return torch.stack(scores, -1)


def _after(first: list[int], rows: Any) -> Any:
    import torch

    return torch.cat([torch.tensor(first).expand(len(rows), -1), rows], -1)


VARIANTS: dict[str, Variant] = {
    "loop": Variant(scoring(ONE, "loop"), "a loop over verbalizers, all logits", "one"),
    "whole": Variant(scoring(ONE, "whole"), "whole prompts", "one"),
    "once": Variant(scoring(ONE, "once"), "beginning computed once", "one"),
    "loop_several": Variant(scoring(SEVERAL, "loop"), "a loop, verbalizers of 3 tokens", "several"),
    "whole_several": Variant(scoring(SEVERAL, "whole"), "whole prompts, verbalizers of 3 tokens", "several"),
    "once_several": Variant(scoring(SEVERAL, "once"), "beginning computed once, verbalizers of 3 tokens", "several"),
}
BASELINE = "whole"
RATIOS = (
    ("beginning computed once, of whole prompts", "whole", "once"),
    ("beginning computed once, of whole prompts, verbalizers of 3 tokens", "whole_several", "once_several"),
    ("beginning computed once, of a loop", "loop", "once"),
)
