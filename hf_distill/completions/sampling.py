"""How completions are drawn, and what one is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sampling:
    """How the tokens of a completion are drawn.

    Attributes:
        max_new_tokens: Largest number of tokens of a completion.
        temperature: What logits are divided by before a token is drawn; 0 for the likeliest token each time.
        top_p: Draw among the likeliest tokens whose probabilities sum to this.
        num_beams: With more than 1, take the likeliest completion that a search with so many beams finds; nothing is
            drawn.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    num_beams: int = 1


@dataclass(frozen=True)
class Completion:
    """What a model wrote after a prompt.

    Attributes:
        ids: Its tokens, the end-of-text token that ended it among them.
        ended: Whether the model ended it; if not, it was cut at `Sampling.max_new_tokens`.
    """

    ids: tuple[int, ...]
    ended: bool
