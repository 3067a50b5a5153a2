"""vLLM: a server that runs a copy of the student, and gets its weights before it writes."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field

from hf_distill import parallel
from hf_distill.completions.backends.base import Backend, Writer, check_room
from hf_distill.completions.backends.own_settings import warn_ignored
from hf_distill.completions.backends.vllm_server import Drawn, VLLMServer
from hf_distill.completions.drawing import cut, softened
from hf_distill.completions.ends import end_ids
from hf_distill.completions.sampling import Completion, Sampling
from hf_distill.component import component
from hf_distill.errors import UserError, under
from hf_distill.models.inspection import base_model, evaluating
from hf_distill.models.tokenizers import vocabulary
from hf_distill.servers import Servers

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from hf_distill.completions.mixture import Mixture

# Completions of each writing whose log-probabilities are compared with the model's own.
COMPARED = 4
# Mean difference in nats above which the server counts as running another model. Half precision makes some hundredths.
LARGE_GAP = 0.2


@component
class VLLM(Backend):
    """A vLLM server (`vllm serve`, in an environment of its own), which runs a copy of the student.

    Whenever the student has trained, its weights are written into a folder, the server reads them and empties its
    prefix cache, and the folder is removed; adapters are merged in what is written. The server needs
    `VLLM_SERVER_DEV_MODE=1`, so let nobody else reach it. Tried with the CPU build of vLLM 0.32; never run on a GPU.

    Attributes:
        url: Address of the server, such as `http://localhost:8000`, or a list of servers with the same model.
        model: Name that the server gives the model. Default: the only one that it has.
        key: Name of the environment variable with the server's key. Default: no key.
        folder: Folder that the servers see under the same name, where weights are written for them; one in memory
            (`/dev/shm`) is fastest. Default: the system's temporary folder.
        sync: Whether the servers are given the weights; false if they hold them already, and the model never trains.
        mode: `server`: on GPUs of its own; the requests of all processes go to all servers. `colocate`: on the GPUs
            that train, one server for each process, in this order. It sleeps while the student trains
            (`--enable-sleep-mode`).
        concurrency: Most requests of a process under way at once.
        timeout: Seconds to wait for an answer.
    """

    name: ClassVar[str] = "vllm"

    url: str | list[str]
    model: str | None = None
    key: str = ""
    folder: str | None = None
    sync: bool = True
    mode: Literal["server", "colocate"] = "server"
    concurrency: Annotated[int, Field(ge=1)] = 64
    timeout: Annotated[float, Field(gt=0.0)] = 300.0

    @property
    def servers(self) -> Servers:
        """The servers."""
        urls = (self.url,) if isinstance(self.url, str) else tuple(self.url)
        return Servers(urls, self.key, self.concurrency, self.timeout)

    def check(self) -> None:
        """Refuse addresses that cannot be used, and a key that is not in the environment."""
        self.servers.check_key()

    def open(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, beside: Mixture | None = None) -> Writer:
        """Return what writes with a model."""
        if beside is not None:
            raise UserError(
                "vllm runs one model, and by: mixture draws from two. Take backend: transformers.",
                key="backend",
            )
        with under("backend"):
            self.check()
            servers = self.servers
            if self.mode == "colocate":
                servers = servers.at(_own(servers.urls))
        return ServerWriter(model, tokenizer, servers, self)

    def deciding(self) -> Mapping[str, Any]:
        """Return what decides what is written: neither where the servers are, nor how they are asked."""
        return {"name": self.name, "model": self.model, "sync": self.sync}

    @property
    def remark(self) -> str:
        """Where it was tried."""
        return (
            "completions.backend vllm was tried with the CPU build of vLLM 0.32, and never run on a GPU. rollout_gap "
            "in the logs says how far the server's log-probabilities are from the student's: compare it with 0"
        )


def _own(urls: Sequence[str]) -> str:
    if len(urls) != parallel.processes():
        raise UserError(
            f"mode: colocate needs one server for each process: wanted {parallel.processes()} addresses, found "
            f"{len(urls)}.",
            key="url",
        )
    return urls[parallel.rank()]


class ServerWriter(Writer):
    """Writes with a vLLM server.

    Args:
        model: The model of which the server runs a copy.
        tokenizer: Its tokenizer.
        servers: Where the servers are.
        settings: The entry of the recipe.
    """

    def __init__(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, servers: Servers, settings: VLLM) -> None:
        inside: Any = base_model(model)
        self._model, self._settings = model, settings
        self._classes = vocabulary(tokenizer)
        self._server = VLLMServer(
            servers,
            settings.model,
            settings.folder,
            ends=end_ids(model, tokenizer),
            classes=self._classes,
            width=inside.config.get_text_config().vocab_size,
        )
        # The step whose weights the server has; None before the first.
        self._step: int | None = None
        self._asleep = False
        self._gaps: list[float] = []
        warn_ignored(inside)

    def follow(self, model: nn.Module, step: int) -> None:
        """Hand the weights to the server, unless it has those of this step."""
        self._model = model
        if self._settings.sync and step != self._step:
            if self._settings.mode == "colocate":
                parallel.together(self._take)  # each process has a server of its own
            else:
                parallel.asked_once(self._take)
        self._step = step

    def _take(self) -> None:
        with under("backend"):
            self._server.known(managed=True)
            self._server.take(self._model, asleep=self._asleep)
        self._asleep = False

    def write(self, prompts: Sequence[Sequence[int]], sampling: Sampling, seed: int) -> list[Completion]:
        """Return a completion of each prompt, in their order."""
        check_room(base_model(self._model).config, prompts, sampling)  # type: ignore[arg-type]
        with under("backend"):
            positions = self._server.known(managed=self._settings.sync).positions
        longest = max(map(len, prompts)) + sampling.max_new_tokens
        if positions is not None and longest > positions:  # it would cut without a word
            raise UserError(
                f"a prompt and its completion have up to {longest} tokens, and the vLLM server takes {positions}. "
                "Start it with a larger --max-model-len, or lower completions.max_new_tokens.",
                key="max_new_tokens",
            )
        if self._settings.sync and self._step is None:
            self._take()
            self._step = -1  # whichever step it is: the next one hands them over again
        with under("backend"):
            written = self._server.complete(prompts, sampling, seed)
            if self._settings.mode == "colocate" and self._settings.sync:
                self._server.sleep()
                # Without weights, which sleep discards, it cannot write again.
                self._asleep, self._step = True, None
        self._compare(prompts, written, sampling)
        return [one.completion for one in written]

    def figures(self) -> Mapping[str, float]:
        """Return the mean difference of the log-probabilities of the server's tokens from the model's own, in nats."""
        found, self._gaps = self._gaps, []
        return {"rollout_gap": sum(found) / len(found)} if found else {}

    @torch.no_grad()
    def _compare(self, prompts: Sequence[Sequence[int]], written: Sequence[Drawn], sampling: Sampling) -> None:
        processed = self._server.known(managed=False).processed
        plain = sampling.temperature == 1.0 and sampling.top_p == 1.0  # then both are the same
        if (processed is None and not plain) or (processed and not sampling.temperature):
            return
        how = sampling if processed else None
        with evaluating(self._model):
            pairs = list(zip(prompts, written, strict=True))[:COMPARED]
            gaps = [gap for prompt, one in pairs for gap in self._gap_of(prompt, one, how)]
        if not gaps:
            return
        mean = sum(gaps) / len(gaps)
        if not self._gaps and mean > LARGE_GAP:
            warnings.warn(
                f"the vLLM server finds its tokens {mean:.2f} nats more or less likely than the model here, on "
                "average: it runs other weights, another model or another precision.",
                stacklevel=2,
            )
        self._gaps.append(mean)

    def _gap_of(self, prompt: Sequence[int], one: Drawn, how: Sampling | None) -> list[float]:
        ids = torch.tensor([[*prompt, *one.completion.ids]], device=next(self._model.parameters()).device)
        logits = self._model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float()
        # Before temperature and `top_p`, the server counts the columns past the vocabulary too.
        known = logits[:, : self._classes]
        found = logits.log_softmax(-1) if how is None else cut(softened(known, how), how).log()
        own = found.gather(-1, ids[0, len(prompt) :, None])[:, 0]
        # At the edge of `top_p` rounding may leave a token out.
        return [abs(ours - theirs) for ours, theirs in zip(own.tolist(), one.log_probs, strict=True) if ours > -1e9]
