"""Times the teacher alone and with the student as draft, by `assistant_model` of Transformers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from hf_distill.completions.ends import end_ids
from hf_distill.models.inspection import evaluating
from hf_distill.report.speculation import Rates, Speculation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from hf_distill.completions.sampling import Sampling


def speculate(
    teacher: Any,
    student: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    seed: int,
) -> Speculation:
    """Return how many tokens a second a teacher writes alone, and with a student as draft.

    The two take turns on every prompt, so that other load slows both equally; the first prompt is not timed.

    Args:
        teacher: The model that writes.
        student: The draft model, with the same tokens.
        tokenizer: Tokenizer of both.
        prompts: Token ids of each prompt, at least one.
        sampling: Says how many tokens are written.
        seed: Seed of the draws.
    """
    ends = end_ids(teacher, tokenizer)

    def write(prompt: Sequence[int], draft: Any, *, drawn: bool) -> tuple[list[int], float]:
        ids = torch.tensor([list(prompt)], device=teacher.device)
        torch.manual_seed(seed)
        _settle(teacher.device)
        started = time.perf_counter()
        made = teacher.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            generation_config=_config(sampling, ends, drawn=drawn),
            **({} if draft is None else {"assistant_model": draft}),
        )
        _settle(teacher.device)
        return made[0, len(prompt) :].tolist(), time.perf_counter() - started

    def rates(*, drawn: bool) -> Rates:
        for draft in (None, student):
            write(prompts[0], draft, drawn=drawn)
        tokens, seconds, same = [0, 0], [0.0, 0.0], 0
        for prompt in prompts:
            texts = []
            for way, draft in enumerate((None, student)):
                text, took = write(prompt, draft, drawn=drawn)
                tokens[way] += len(text)
                seconds[way] += took
                texts.append(text)
            same += texts[0] == texts[1]
        alone, assisted = (count / took for count, took in zip(tokens, seconds, strict=True))
        return Rates(alone, assisted, None if drawn else same / len(prompts))

    with torch.no_grad(), evaluating(teacher), evaluating(student), torch.random.fork_rng(_devices(teacher.device)):
        return Speculation(len(prompts), sampling.max_new_tokens, rates(drawn=False), rates(drawn=True))


def _devices(device: torch.device) -> list[torch.device]:
    return [device] if device.type == "cuda" else []


def _settle(device: torch.device) -> None:
    """Wait for a device to finish; without this only the queueing of its work would be timed."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _config(sampling: Sampling, ends: Sequence[int], *, drawn: bool) -> Any:
    from transformers import GenerationConfig

    made: Any = GenerationConfig
    return made(
        max_new_tokens=sampling.max_new_tokens,
        eos_token_id=list(ends) or None,
        pad_token_id=ends[0] if ends else 0,
        use_cache=True,
        do_sample=drawn,
        **({"temperature": 1.0, "top_k": 0, "top_p": 1.0} if drawn else {}),
    )
