"""A teacher that writes on its server: token ids in, token ids out."""

from __future__ import annotations

from collections.abc import Sequence

from hf_distill.completions.backends.base import Writer
from hf_distill.completions.backends.vllm_server import VLLMServer
from hf_distill.completions.sampling import Completion, Sampling
from hf_distill.errors import UserError


class ServedWriter(Writer):
    """Writes with the model of a vLLM server as it is: no weights are handed to it.

    Args:
        server: The server.
    """

    def __init__(self, server: VLLMServer) -> None:
        self._server = server

    def write(self, prompts: Sequence[Sequence[int]], sampling: Sampling, seed: int) -> list[Completion]:
        """Return a completion of each prompt, in their order.

        Raises:
            UserError: A text may get longer than the server takes, or the server answers something else.
        """
        if not all(prompts):
            raise UserError("a prompt has no tokens. Drop such rows.", key="")
        positions, longest = self._server.known(managed=False).positions, max(map(len, prompts))
        if positions is not None and longest + sampling.max_new_tokens > positions:  # it would cut without a word
            raise UserError(
                f"a prompt of {longest} tokens and a completion of {sampling.max_new_tokens} are longer than the "
                f"{positions} tokens that the server takes. Start it with a larger --max-model-len, or lower "
                "completions.max_new_tokens.",
                key="completions.max_new_tokens",
            )
        return [one.completion for one in self._server.complete(prompts, sampling, seed)]
