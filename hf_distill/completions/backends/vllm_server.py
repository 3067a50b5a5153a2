"""Talk to a vLLM server: weights in, token ids and their log-probabilities out, every answer checked."""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hf_distill.completions.plain_weights import save_plain
from hf_distill.completions.sampling import Completion, Sampling
from hf_distill.errors import UserError, first_line
from hf_distill.servers import Refused, Servers

if TYPE_CHECKING:
    from torch import nn

# Attempts to empty the prefix cache, which fails while requests are under way, and seconds between them.
RESETS, RESET_WAIT = 20, 0.5


@dataclass(frozen=True)
class Drawn:
    """A completion, and how likely its tokens were.

    Attributes:
        completion: What was written.
        log_probs: `log p` of each token, as the server computes it.
    """

    completion: Completion
    log_probs: tuple[float, ...]


@dataclass(frozen=True)
class ServerFacts:
    """What a server says about itself.

    Attributes:
        model: Name that it gives the model.
        positions: Longest text in tokens; None if it does not say.
        processed: Whether log-probabilities are those after temperature and `top_p`; None if it does not say.
        dtype: Of its weights; None if it does not say.
    """

    model: str
    positions: int | None = None
    processed: bool | None = None
    dtype: torch.dtype | None = None


class VLLMServer:
    """One vLLM server, or several that hold the same model.

    Args:
        servers: Where they are.
        model: Name that they give the model; None for the only one.
        folder: Where weights are written for them; None for the system's temporary folder.
        ends: Ids that end a text.
        classes: Number of tokens of the vocabulary.
        width: Number of columns of the model's head.
    """

    def __init__(
        self,
        servers: Servers,
        model: str | None,
        folder: str | None,
        *,
        ends: Sequence[int],
        classes: int,
        width: int,
    ) -> None:
        self.servers, self._model, self._folder = servers, model, folder
        self._ends, self._classes, self._width = frozenset(ends), classes, width
        self._known: ServerFacts | None = None

    # ---- What it is ----

    def known(self, *, managed: bool) -> ServerFacts:
        """Return what the servers say about themselves; they are asked once.

        Args:
            managed: Whether weights are to be handed to them, for which they must let themselves be managed.

        Raises:
            UserError: They do not answer, hold another model or cannot be managed.
        """
        if self._known is None:
            first, *_ = [self._ask(self.servers.at(url), managed) for url in self.servers.urls]
            self._known = first
        return self._known

    def _ask(self, server: Servers, managed: bool) -> ServerFacts:
        held = {str(one.get("id")): one for one in _list(server.get("/v1/models"), "data")}
        name = self._model or (next(iter(held)) if len(held) == 1 else None)
        if name not in held:
            raise UserError(
                f"{server.urls[0]} holds {', '.join(held) or 'no model'}, and {name or 'one name'} was wanted. Name "
                "one of its models (model: NAME).",
                key="model",
            )
        positions = held[name].get("max_model_len")
        found = ServerFacts(name, positions if isinstance(positions, int) else None)
        try:
            said = server.get("/server_info?config_format=json")
        except Refused as error:
            if not managed:
                return found
            raise UserError(
                f"{server.urls[0]} takes no weights ({error.said or error.status}). Start it with "
                "VLLM_SERVER_DEV_MODE=1 in its environment, where only this training reaches it.",
                key="url",
            ) from error
        settings = said.get("vllm_config", {}).get("model_config", {}) if isinstance(said, Mapping) else {}
        mode = str(settings.get("logprobs_mode", ""))
        dtype = getattr(torch, str(settings.get("dtype", "")).removeprefix("torch."), None)
        return replace(
            found,
            processed=mode == "processed_logprobs" if mode.endswith("logprobs") else None,
            dtype=dtype if isinstance(dtype, torch.dtype) else None,
        )

    # ---- Weights ----

    def take(self, model: nn.Module, *, asleep: bool = False) -> None:
        """Hand the weights of a model to every server, and empty their prefix caches, which hold old values.

        Args:
            model: The model, without wrapper of a distributed training; adapters are merged in what is handed over.
            asleep: Whether the servers sleep; they are awake afterwards.

        Raises:
            UserError: The weights cannot be written, or a server did not take them.
        """
        folder = self._written(model)
        try:
            for url in self.servers.urls:
                server = replace(self.servers.at(url), attempts=2)
                if asleep:
                    server.post("/wake_up?tags=weights", {})
                body = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
                server.post("/collective_rpc", body)
                self._forget(server)
                if asleep:
                    server.post("/wake_up?tags=kv_cache", {})
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def sleep(self) -> None:
        """Let every server give back its memory: weights and cache."""
        for url in self.servers.urls:
            self.servers.at(url).post("/sleep?level=2", {})

    def _written(self, model: nn.Module) -> Path:
        try:
            folder = Path(tempfile.mkdtemp(prefix="hf_distill-weights-", dir=self._folder))
            folder.chmod(0o755)  # the server may be another user
            save_plain(model, folder, self.known(managed=True).dtype)
        except OSError as error:
            raise UserError(
                f"the weights for the server cannot be written: {first_line(error)}. Name a folder that both see, with "
                "room for them (folder: /dev/shm).",
                key="folder",
            ) from error
        return folder

    def _forget(self, server: Servers) -> None:
        for _ in range(RESETS):
            if server.post("/reset_prefix_cache", {}).get("success"):
                return
            time.sleep(RESET_WAIT)
        raise UserError(
            f"{server.urls[0]} cannot empty its prefix cache, which holds values of the old weights: somebody else's "
            "requests are under way. Let this training have the server to itself.",
            key="url",
        )

    # ---- Completions ----

    def complete(self, prompts: Sequence[Sequence[int]], sampling: Sampling, seed: int) -> list[Drawn]:
        """Return a completion of each prompt, in their order.

        Args:
            prompts: Token ids of each prompt.
            sampling: How tokens are drawn.
            seed: Each prompt gets a seed of its own from it: else equal prompts would get equal completions.

        Raises:
            UserError: A server did not answer, or with something else than what was asked for.
        """
        known = self.known(managed=False)
        bodies = [
            {**self._settings(known.model, sampling), "prompt": list(one), "seed": _seed(seed, row)}
            for row, one in enumerate(prompts)
        ]
        found: dict[int, Drawn] = {}
        for row, answer in self.servers.post_all("/v1/completions", bodies):
            try:
                found[row] = self._read(answer, known.model, list(prompts[row]), sampling)
            except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
                what = first_line(error) if isinstance(error, _Wrong) else "its form is not that of a completion"
                raise UserError(
                    f"the vLLM server answered something else than what was asked: {what}.", key="url"
                ) from (error)
        return [found[row] for row in range(len(prompts))]

    def _settings(self, model: str, sampling: Sampling) -> dict[str, Any]:
        """Return what all requests say: all of it, because a server has defaults of its own (`generation_config`)."""
        return {
            "model": model,
            "n": 1,
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "stop_token_ids": sorted(self._ends),
            "logprobs": 0,
            "return_token_ids": True,
            "skip_special_tokens": False,
            # Columns past the vocabulary are no tokens.
            **({"logit_bias": {str(one): -100.0 for one in range(self._classes, self._width)}} if self._padded else {}),
        }

    @property
    def _padded(self) -> bool:
        return self._width > self._classes

    def _read(self, answer: Any, model: str, prompt: list[int], sampling: Sampling) -> Drawn:
        if answer["model"] != model:
            raise _Wrong(f"it is of the model {answer['model']}, not of {model}")
        if len(answer["choices"]) != 1:
            raise _Wrong(f"{len(answer['choices'])} completions of one prompt")
        (choice,) = answer["choices"]
        ids, reason = choice.get("token_ids"), choice["finish_reason"]
        if ids is None:
            raise _Wrong("no token ids, which servers before vLLM 0.10.2 do not return")
        if choice.get("prompt_token_ids", prompt) != prompt:
            raise _Wrong("the prompt is another one")
        if wrong := [one for one in ids if type(one) is not int or not 0 <= one < self._classes]:
            raise _Wrong(f"token {wrong[0]!r}, and the vocabulary has {self._classes}: its tokenizer is another one")
        ended = bool(ids) and ids[-1] in self._ends
        if reason not in ("stop", "length"):
            raise _Wrong(f"the completion was broken off (finish_reason {reason!r})")
        if reason == "stop" and not ended:
            raise _Wrong(
                f"token {ids[-1] if ids else 'none'} ended the text, and ends here are {sorted(self._ends)}: start the "
                "server with --generation-config vllm, or with the model that trains"
            )
        if self._ends.intersection(ids[:-1]):
            raise _Wrong("it goes on after the end of the text")
        if not ended and len(ids) != sampling.max_new_tokens:
            raise _Wrong(f"it was cut after {len(ids)} tokens, and {sampling.max_new_tokens} were asked for")
        log_probs = [float(one) for one in choice["logprobs"]["token_logprobs"]]
        if len(log_probs) != len(ids) or not all(map(math.isfinite, log_probs)):
            raise _Wrong("its log-probabilities are not those of its tokens")
        return Drawn(Completion(tuple(ids), ended), tuple(log_probs))


class _Wrong(ValueError):
    """What is wrong with an answer."""


def _list(answer: Any, name: str) -> list[Mapping[str, Any]]:
    found = answer.get(name) if isinstance(answer, Mapping) else None
    if not isinstance(found, list) or not all(isinstance(one, Mapping) for one in found):
        raise UserError("the server does not answer as vLLM does: no list of models at /v1/models.", key="url")
    return found


def _seed(seed: int, row: int) -> int:
    """Return a seed of one request, of 63 bits."""
    return int(np.random.SeedSequence([seed, row]).generate_state(1, np.uint64)[0] >> np.uint64(1))
