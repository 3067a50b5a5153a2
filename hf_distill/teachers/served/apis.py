"""How servers are asked for the log-probabilities of given tokens: vLLM and SGLang."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

# Token -> its log-probability, as a server wrote it.
Entries = Mapping[Any, Any]


class Unusable(Exception):
    """An answer that is not what was asked for; the text says in which way."""


@dataclass(frozen=True)
class Request:
    """What is asked about one text.

    Attributes:
        ids: Its tokens, up to the last one that is asked about.
        start: Nothing is asked about this token and those before it.
        top: How many of the likeliest tokens are wanted; all if there are as many tokens as that.
    """

    ids: Sequence[int]
    start: int
    top: int


class Api(ABC):
    """One kind of server."""

    name: ClassVar[str]
    # Where it is asked, and how it is started to give more log-probabilities, and to take longer texts.
    path: ClassVar[str]
    more: ClassVar[str] = "a higher limit:"
    longer: ClassVar[str]

    @abstractmethod
    def body(self, model: str, request: Request, *, every: bool) -> dict[str, Any]:
        """Return the JSON of a request.

        Args:
            model: What the server calls the model.
            request: What is asked.
            every: Whether `top` is the whole vocabulary.
        """

    @abstractmethod
    def read(self, model: str, request: Request, answer: Any) -> list[Entries]:
        """Return what the answer says about each of `ids[start + 1:]`.

        Raises:
            Unusable: It is not an answer to this request.
        """


class Vllm(Api):
    """vLLM's completions with a list of tokens as the prompt: `prompt_logprobs` are given for every token of it."""

    name: ClassVar[str] = "vllm"
    path: ClassVar[str] = "/v1/completions"
    more: ClassVar[str] = "--max-logprobs"
    longer: ClassVar[str] = "--max-model-len"

    def body(self, model: str, request: Request, *, every: bool) -> dict[str, Any]:
        """Return a request for one new token, the least there is, which is not looked at."""
        return {
            "model": model,
            "prompt": list(request.ids),
            "max_tokens": 1,
            "temperature": 0.0,
            "prompt_logprobs": -1 if every else request.top,
            "return_token_ids": True,  # an older server ignores it
        }

    def read(self, model: str, request: Request, answer: Any) -> list[Entries]:
        """Return the entries, whose keys are the numbers of tokens as text."""
        _check_model(answer, model)
        choices = _part(answer, "choices", list)
        if len(choices) != 1:
            raise Unusable(f"{len(choices)} choices in place of one")
        _check_ids(_part(choices[0], "prompt_token_ids", list, optional=True), request.ids)
        found = _part(choices[0], "prompt_logprobs", list)
        if len(found) != len(request.ids):
            raise Unusable(f"log-probabilities of {len(found)} tokens for a text of {len(request.ids)}")
        return [
            {number: _part(one, "logprob", float) for number, one in _entries(cell)}
            for cell in found[request.start + 1 :]
        ]


class Sglang(Api):
    """SGLang's own `/generate`, which can begin in the middle of a text and need not generate anything."""

    name: ClassVar[str] = "sglang"
    path: ClassVar[str] = "/generate"
    longer: ClassVar[str] = "--context-length"

    def body(self, model: str, request: Request, *, every: bool) -> dict[str, Any]:
        """Return a request without new tokens."""
        return {
            "input_ids": list(request.ids),
            "sampling_params": {"max_new_tokens": 0, "temperature": 0.0},
            "return_logprob": True,
            "logprob_start_len": request.start,
            "top_logprobs_num": request.top,
        }

    def read(self, model: str, request: Request, answer: Any) -> list[Entries]:
        """Return the likeliest tokens together with the text's own; the first of each list stands for no token."""
        known = _part(answer, "meta_info", dict)
        own = _part(known, "input_token_logprobs", list)
        some = _part(known, "input_top_logprobs", list) if request.top else [[]] * len(own)
        wanted = len(request.ids) - request.start
        if len(own) != wanted or len(some) != wanted:
            raise Unusable(f"log-probabilities of {min(len(own), len(some))} tokens in place of {wanted}")
        _check_ids([_triple(one)[1] for one in own], request.ids[request.start :])
        return [
            {number: value for value, number in map(_triple, [*(likely or []), one])}
            for one, likely in zip(own[1:], some[1:], strict=True)
        ]


APIS: dict[str, Api] = {one.name: one for one in (Vllm(), Sglang())}


def _check_model(answer: Any, model: str) -> None:
    named = _part(answer, "model", str, optional=True)
    if named is not None and named != model:
        raise Unusable(f"the answer of another model ('{named}')")


def _check_ids(found: Sequence[Any] | None, ids: Sequence[int]) -> None:
    if found is not None and list(found) != list(ids):
        raise Unusable("the answer for other tokens than those that were sent")


def _part(whole: Any, name: str, kind: type, *, optional: bool = False) -> Any:
    """Return a member of a JSON object; a number may be written without a point.

    Raises:
        Unusable: It is not there, or something else.
    """
    if not isinstance(whole, Mapping):
        raise Unusable(f"{_shown(whole)} in place of an object with '{name}'")
    found = whole.get(name)
    if found is None and optional:
        return None
    if isinstance(found, bool) or not isinstance(found, (int, float) if kind is float else kind):
        raise Unusable(f"'{name}' is {_shown(found)}")
    return found


def _entries(cell: Any) -> Iterator[tuple[int, Any]]:
    if not isinstance(cell, Mapping):
        raise Unusable(f"{_shown(cell)} in place of log-probabilities by token")
    for key, one in cell.items():
        if not (key.isascii() and key.isdigit()):
            raise Unusable(f"the token {_shown(key)}, which is not a number")
        yield int(key), one


def _triple(one: Any) -> tuple[Any, Any]:
    if not isinstance(one, list) or len(one) < 2 or isinstance(one[1], bool) or not isinstance(one[1], int):
        raise Unusable(f"{_shown(one)} in place of [log-probability, token, text]")
    return one[0], one[1]


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
