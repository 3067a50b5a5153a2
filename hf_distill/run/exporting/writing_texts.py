"""Lets a student write texts in several formats with its cache, and compares them with PyTorch token by token."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hf_distill.errors import UserError
from hf_distill.report.exports import PYTORCH, WritingFigures

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hf_distill.export.causal import WritingSession

# Tokens that are written behind each prompt, tokens of the longest prompt, and prompts; at most.
WRITTEN, PROMPT, PROMPTS = 24, 8, 4


@dataclass
class Texts:
    """What one format wrote.

    Attributes:
        tokens: Of each prompt, the tokens behind it.
        seconds: Time of all of them.
        difference: Largest difference of a logit from PyTorch's pass over the whole text.
    """

    tokens: list[list[int]] = field(default_factory=list)
    seconds: float = 0.0
    difference: float = 0.0

    def figures(self, wanted: Texts, threads: int, *, timed: bool) -> WritingFigures:
        """Return the figures, of which some compare with what PyTorch wrote; the speed only if it is `timed`."""
        here, count = self is wanted, len(self.tokens)
        same = sum(one == other for one, other in zip(self.tokens, wanted.tokens, strict=True))
        return WritingFigures(
            tokens_per_second=sum(map(len, self.tokens)) / self.seconds if timed else None,
            same=None if here else same / count,
            difference=None if here else self.difference,
            prompts=count,
            tokens=len(self.tokens[0]),
            threads=threads,
        )


def prompts_of(rows: Sequence[Sequence[int]], positions: int | None) -> list[list[int]]:
    """Return beginnings of texts, of different lengths, which leave half of a model's positions; none of a single one.

    Args:
        rows: The texts as tokens.
        positions: Number of positions of the model; None for no limit.
    """
    most = PROMPT if positions is None else min(PROMPT, positions // 2)
    return [list(row[: max(most - place % 3, 1)]) for place, row in enumerate(rows) if len(row) and most]


def write_texts(
    model: Any,
    sessions: Mapping[str, WritingSession],
    prompts: Sequence[Sequence[int]],
    limits: Mapping[str, float],
    threads: int,
    positions: int | None = None,
    *,
    timed: bool = True,
) -> dict[str, WritingFigures]:
    """Return how PyTorch and each format write behind the same prompts.

    Args:
        model: The student in PyTorch.
        sessions: Name -> format.
        prompts: Beginnings of texts, as tokens.
        limits: Name -> largest difference of a logit from PyTorch; not of formats that may differ more.
        threads: Number of CPU threads of all of them.
        positions: Number of positions of the model, in which prompts and tokens stay; None for no limit.
        timed: Whether to return the speed.

    Raises:
        UserError: A format differs more with its cache, or in a batch with padding on the left.
    """
    found: dict[str, Texts] = {name: Texts() for name in (PYTORCH, *sessions)}
    room = WRITTEN if positions is None else min(WRITTEN, positions - max(map(len, prompts)))
    for prompt in prompts:
        started = time.perf_counter()
        found[PYTORCH].tokens.append(_by_model(model, prompt, room))
        found[PYTORCH].seconds += time.perf_counter() - started
        for name, session in sessions.items():
            mine = found[name]
            started = time.perf_counter()
            tokens, logits = _by_session(session, prompt, room)
            mine.seconds += time.perf_counter() - started
            mine.tokens.append(tokens)
            mine.difference = max(mine.difference, _apart(logits, _whole(model, [*prompt, *tokens[:-1]])))
    for name, limit in limits.items():
        texts = [[*prompt, *tokens] for prompt, tokens in zip(prompts, found[name].tokens, strict=True)]
        apart = max(found[name].difference, _batched(model, sessions[name], texts))
        if not apart <= limit:
            raise UserError(
                f"{name} gives other results with its cache than PyTorch for the whole text: a logit differs by "
                f"{apart:.3g}, and rounding explains {limit:.3g}. It is not usable. Please report this, with the "
                "student's config.json."
            )
    return {name: one.figures(found[PYTORCH], threads, timed=timed) for name, one in found.items()}


def _by_session(session: WritingSession, prompt: Sequence[int], count: int) -> tuple[list[int], NDArray[Any]]:
    """Return the tokens that a format writes behind a prompt, and the logits of prompt and tokens but the last."""
    made, logits, past = list(prompt), [], None
    new = made
    for _ in range(count):
        found, past = session.step(np.array([new]), np.ones((1, len(made)), np.int64), past)
        logits.append(found[0])
        new = [int(found[0, -1].argmax())]
        made = [*made, *new]
    return made[len(prompt) :], np.concatenate(logits)


def _by_model(model: Any, prompt: Sequence[int], count: int) -> list[int]:
    """Return the tokens that PyTorch writes behind a prompt."""
    made, new, past = list(prompt), list(prompt), None
    with torch.inference_mode():
        for _ in range(count):
            found = model(input_ids=torch.tensor([new]), past_key_values=past, use_cache=True)
            new, past = [int(found.logits[0, -1].argmax())], found.past_key_values
            made += new
    return made[len(prompt) :]


def _whole(model: Any, ids: Sequence[int]) -> NDArray[Any]:
    with torch.inference_mode():
        logits: NDArray[Any] = model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0].numpy()
    return logits


def _batched(model: Any, session: WritingSession, texts: Sequence[Sequence[int]]) -> float:
    """Return the largest difference from PyTorch of texts that are read as one batch, padded on the left.

    The first columns are read at once, the others token by token with the cache.
    """
    longest = max(map(len, texts))
    ids, mask = np.zeros((2, len(texts), longest), np.int64)
    for row, text in enumerate(texts):
        ids[row, longest - len(text) :], mask[row, longest - len(text) :] = text, 1
    first = min(PROMPT, longest - 1)
    found, past = session.step(ids[:, :first], mask[:, :first])
    parts = [found]
    for end in range(first + 1, longest + 1):
        found, past = session.step(ids[:, end - 1 : end], mask[:, :end], past)
        parts.append(found)
    logits = np.concatenate(parts, axis=1)
    return max(_apart(logits[row, longest - len(text) :], _whole(model, text)) for row, text in enumerate(texts))


def _apart(one: NDArray[Any], other: NDArray[Any]) -> float:
    found = float(np.abs(one - other).max())
    return found if np.isfinite(found) else float("inf")
