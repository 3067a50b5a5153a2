"""What is found out about a server before the first request: is it the right model, does it give enough."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hf_distill.errors import UserError, did_you_mean
from hf_distill.formatting import readable
from hf_distill.servers import Refused, Servers
from hf_distill.teachers.served.apis import Unusable
from hf_distill.teachers.served.asking import Asked, Asking, Known
from hf_distill.teachers.served.scored import TextRows

logger = logging.getLogger(__name__)

# Several scripts, numbers and signs: tokenizers differ in at least one of them.
PROBE = "The Quick brown fox's 12 jumps - naïve, (über) 北京! Привет мир, नमस्ते; def f(x):\n    return x ** 2\n"
# Most tokens of it that are sent.
_TOKENS = 128
# Largest difference of the log-probability of a token between the server, which computes in bfloat16, and a local copy.
NEAR = 0.25


def greet(asking: Asking, tokenizer: Any, local: str | None = None) -> Known:
    """Return what every server says about the model, after a probe of each.

    Args:
        asking: How the model is asked.
        tokenizer: The student's tokenizer; None if it is not known.
        local: Directory or Hub id of the same model, to compare with; None for none.

    Raises:
        UserError: A server does not answer, has another model or another vocabulary, or gives too little.
    """
    asking.servers.check_key()
    urls = asking.servers.urls
    every = [_greet_one(asking.at(url), tokenizer, local) for url in urls]
    for url, one in zip(urls, every, strict=True):
        if one.root != every[0].root:
            raise UserError(
                f"{urls[0]} serves '{asking.model}' from '{readable(every[0].root, 200)}', and {url} from "
                f"'{readable(one.root, 200)}'. Wanted the same model everywhere.",
                key="url",
            )
    return Known(every[0].root, min((one.longest for one in every if one.longest is not None), default=None))


def _greet_one(asking: Asking, tokenizer: Any, local: str | None) -> Known:
    known = _model(asking.servers, asking.model)
    ids = _probe(tokenizer, asking.classes)
    if known.longest is not None:
        ids = ids[: max(2, known.longest - 1)]
    rows = _ask_probe(asking, Asked(tuple(ids), tuple(range(1, len(ids)))))
    _check_texts(asking.servers, asking.model, tokenizer)
    if local is not None:
        _check_local(local, asking.classes, ids, rows)
    return known


def _model(server: Servers, name: str) -> Known:
    """Return what `/v1/models` says about a model."""
    url = server.urls[0]
    told = server.get("/v1/models")
    models = [one for one in told.get("data") or [] if isinstance(one, Mapping)] if isinstance(told, Mapping) else []
    there = {str(one.get("id")): one for one in models}
    if name not in there:
        raise UserError(
            f"{url} does not serve '{name}'.{did_you_mean(name, there) if there else ' It names no model.'}",
            key="model",
        )
    found = there[name]
    longest = found.get("max_model_len")
    return Known(str(found.get("root") or ""), longest if isinstance(longest, int) and longest > 1 else None)


def _probe(tokenizer: Any, classes: int) -> list[int]:
    ids = [] if tokenizer is None else [one for one in tokenizer(PROBE)["input_ids"] if one < classes]
    return (ids if len(ids) > 1 else list(range(min(classes, 16))))[:_TOKENS]


def _ask_probe(asking: Asking, probe: Asked) -> TextRows:
    """Return the rows of the probe.

    Raises:
        UserError: The server refuses so many log-probabilities, or answers something else.
    """
    url, api = asking.servers.urls[0], asking.api
    try:
        return asking.read(probe, asking.servers.post(api.path, asking.body(probe)))
    except Refused as error:
        if (most := most_logprobs(error.said)) is not None and most < asking.top:
            raise UserError(
                f"{url} gives at most {most} log-probabilities a token, and {asking.top} are wanted. Start it with "
                f"{api.more} {-1 if asking.every else asking.top}, or set top: {most}.",
                key="top",
            ) from error
        raise
    except Unusable as error:
        raise UserError(
            f"{url} answered a probe of {len(probe.ids)} tokens with {error}. Wanted a server of {api.name} (api) with "
            f"the model and the tokens of the student, which gives {asking.top} log-probabilities a token.",
            key="url",
        ) from None


def most_logprobs(said: str) -> int | None:
    """Return how many log-probabilities a server gives, from its refusal; None if it does not say.

    >>> most_logprobs("Requested prompt logprobs of 64, which is greater than max allowed: 20")
    20
    >>> most_logprobs("This model's maximum context length is 2048 tokens.")
    """
    found = re.search(r"logprobs.*max\D*(\d+)", said, re.IGNORECASE | re.DOTALL)
    return None if found is None else int(found[1])


def _check_texts(server: Servers, name: str, tokenizer: Any) -> None:
    """Refuse a server whose tokenizer makes other tokens of a text, where it can be asked (`/tokenize`)."""
    if tokenizer is None:
        return
    ours = tokenizer(PROBE, add_special_tokens=False)["input_ids"]
    try:
        told = server.post("/tokenize", {"model": name, "prompt": PROBE, "add_special_tokens": False})
    except Refused:
        logger.info("%s does not say how it tokenises: only numbers of tokens were compared", server.urls[0])
        return
    theirs = told.get("tokens") if isinstance(told, Mapping) else None
    if theirs != ours:
        at = next((at for at, (one, other) in enumerate(zip(ours, theirs or [], strict=False)) if one != other), None)
        first = f": the first different one is number {at}" if at is not None else ""
        raise UserError(
            f"{server.urls[0]} makes other tokens of a text than the student's tokenizer{first}. Its log-probabilities "
            "would belong to other words. Choose a student of the teacher's family.",
            key="model",
        )


def _check_local(local: str, classes: int, ids: Sequence[int], rows: TextRows) -> None:
    """Refuse a server whose log-probabilities are not those of a local copy of the model.

    Raises:
        UserError: They differ by more than rounding does.
    """
    import torch

    from hf_distill.models.loading import Head, load_model

    model: Any
    model, _ = load_model(local, Head("AutoModelForCausalLM"), own_head=True)
    with torch.no_grad():
        logits = model.eval()(input_ids=torch.tensor([list(ids)])).logits[0, :-1, :classes].float()
    ours = logits.log_softmax(-1).gather(-1, torch.tensor(ids[1:]).unsqueeze(-1)).squeeze(-1).numpy()
    apart = float(np.abs(ours - rows.written).max())
    if not apart <= NEAR:
        raise UserError(
            f"the server's log-probabilities differ from those of '{local}' by up to {apart:.3g} on {len(ids)} tokens: "
            "it serves another model, or changes its logits. Name the right one, or start the server without "
            "--logprobs-mode and without quantization.",
            key="local",
        )
