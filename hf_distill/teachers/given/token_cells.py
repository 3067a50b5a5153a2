"""Read cells of log-probabilities as servers write them: the most likely tokens at each position of a completion."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

# A token as its id, or as its text.
Token = int | str
# Prefix of token ids that vLLM writes with `return_tokens_as_token_ids`.
_BY_ID = "token_id:"


class Misfit(Exception):
    """A cell is wrong; the message says what it has and what was wanted."""


@dataclass(frozen=True)
class Cell:
    """The targets of a row.

    Attributes:
        tokens: Token of the completion at each position; None if the data does not have them.
        top: Most likely tokens at each position, in any order.
        log_probabilities: Log-probability of each token in `top`.
    """

    tokens: list[Token] | None
    top: list[list[Token]]
    log_probabilities: list[list[float]]


def read_cell(row: Mapping[str, Any]) -> Cell:
    """Return the targets of a row.

    Args:
        row: Cells by name (`logprobs`, or `top_token_ids` and `top_logprobs`; perhaps `token_ids`), as lists or JSON.

    Raises:
        Misfit: The format of a cell is unknown.
    """
    ids = None
    if row.get("token_ids") not in (None, "null"):
        ids = [_id(one, f"position {at} of token_ids") for at, one in enumerate(_list(row["token_ids"], "token_ids"))]
    found = _servers(row["logprobs"]) if "logprobs" in row else _plain(row["top_token_ids"], row["top_logprobs"])
    if ids is not None and len(ids) != len(found.top):
        raise Misfit(f"{len(ids)} token_ids and {len(found.top)} positions of log-probabilities; wanted one for each")
    return found if ids is None else Cell(list(ids), found.top, found.log_probabilities)


def _list(cell: Any, what: str) -> list[Any]:
    found = cell
    if isinstance(cell, str):
        try:
            found = json.loads(cell)
        except ValueError:
            found = cell
    if isinstance(found, Mapping) and isinstance(found.get("content"), list):  # the whole `choices[0].logprobs`
        found = found["content"]
    if not isinstance(found, list):
        raise Misfit(f"{str(cell)[:40]!r} for {what}; wanted a list with an entry for each token of the completion")
    return found


def _plain(top: Any, values: Any) -> Cell:
    tokens, numbers = _list(top, "top_token_ids"), _list(values, "top_logprobs")
    if len(tokens) != len(numbers):
        raise Misfit(f"{len(tokens)} positions of top_token_ids and {len(numbers)} of top_logprobs; wanted as many")
    ids: list[list[Token]] = []
    found: list[list[float]] = []
    for at, (some, theirs) in enumerate(zip(tokens, numbers, strict=True)):
        if not isinstance(some, list) or not isinstance(theirs, list) or len(some) != len(theirs):
            raise Misfit(f"at position {at} {_many(some)} tokens and {_many(theirs)} log-probabilities; wanted as many")
        ids.append([_id(one, f"position {at}") for one in some])
        found.append([_number(one, at) for one in theirs])
    return Cell(None, ids, found)


def _many(value: Any) -> str:
    return str(len(value)) if isinstance(value, list) else "no list of"


def _servers(cell: Any) -> Cell:
    positions = _list(cell, "logprobs")
    openai = [isinstance(one, Mapping) and "token" in one and "top_logprobs" in one for one in positions]
    read = [
        dict(_openai(one, at) if is_openai else _vllm(one, at))
        for at, (one, is_openai) in enumerate(zip(positions, openai, strict=True))
    ]
    tokens = [_token(one["token"], at) for at, one in enumerate(positions)] if positions and all(openai) else None
    return Cell(tokens, [list(one) for one in read], [list(one.values()) for one in read])


def _openai(position: Mapping[str, Any], at: int) -> Iterator[tuple[Token, float]]:
    """Yield the tokens of `{token, logprob, top_logprobs}`; `token` may be missing in `top_logprobs`."""
    seen = set()
    for one in position["top_logprobs"] or []:
        if not isinstance(one, Mapping) or "token" not in one:
            raise Misfit(f"{str(one)[:40]!r} at position {at}; wanted {{token, logprob}}")
        token = _token(one["token"], at)
        if token in seen:
            raise Misfit(f"the token {token!r} twice at position {at}")
        seen.add(token)
        yield token, _number(one.get("logprob"), at)
    own = _token(position["token"], at)
    if own not in seen:
        yield own, _number(position.get("logprob"), at)


def _vllm(position: Any, at: int) -> Iterator[tuple[Token, float]]:
    """Yield the tokens of `{token_id: {logprob, ...}}`, or `{token_id: logprob}`."""
    if not isinstance(position, Mapping):
        raise Misfit(
            f"{str(position)[:40]!r} at position {at} of logprobs; wanted {{token, logprob, top_logprobs}} or "
            "{token_id: {logprob}}"
        )
    for token, value in position.items():
        if value is None:  # `datasets` adds the tokens of all positions to every position
            continue
        yield _id(token, f"position {at}"), _number(value["logprob"] if _has_number(value) else value, at)


def _has_number(value: Any) -> bool:
    return isinstance(value, Mapping) and "logprob" in value


def _token(token: Any, at: int) -> Token:
    if isinstance(token, str):
        return _id(token.removeprefix(_BY_ID), f"position {at}") if token.startswith(_BY_ID) else token
    return _id(token, f"position {at}")


def _id(token: Any, where: str) -> int:
    if isinstance(token, str) and token.isascii() and token.isdigit():
        return int(token)
    if not isinstance(token, int) or isinstance(token, bool):
        raise Misfit(f"{str(token)[:40]!r} at {where}; wanted the number of a token")
    return token


def _number(value: Any, at: int) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise Misfit(f"{str(value)[:40]!r} at position {at}; wanted a log-probability")
    return float(value)
