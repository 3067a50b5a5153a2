"""A server on this machine that speaks what is documented of vLLM's, over a tiny real model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from fake_server import Status
from safetensors.torch import load_file


class FakeVLLM:
    """Answers as `vllm serve` does with `VLLM_SERVER_DEV_MODE=1`: what it holds, weights from a folder, completions.

    As there, the values of prompts stay in a cache that does not notice new weights.

    Args:
        model: What it serves; a copy of its own.
        ends: Ids that end a text by themselves.

    Attributes:
        events: What happened, in order: `reload`, `reset`, `sleep`, `wake_up ...`, `complete`.
        resets: Answers of the next attempts to empty the cache; then it works.
    """

    def __init__(self, model: Any, ends: tuple[int, ...] = ()) -> None:
        self.model, self.ends = model.eval(), ends
        self.events: list[str] = []
        self.resets: list[bool] = []
        self.settings: dict[str, Any] = {"logprobs_mode": "raw_logprobs", "dtype": "torch.float32"}
        self.positions = 64
        self.managed = True
        self._cache: dict[tuple[int, ...], torch.Tensor] = {}

    def answer(self, path: str, body: Any) -> Any:
        path, _, query = path.partition("?")
        if path == "/v1/models":
            return {"object": "list", "data": [{"id": "tiny", "max_model_len": self.positions}]}
        if path == "/v1/completions":
            return self._complete(body)
        if not self.managed:
            raise Status(404, {"detail": "Not Found"})
        if path == "/server_info":
            return {"vllm_config": {"model_config": self.settings}}
        if path == "/collective_rpc":
            assert body["method"] == "reload_weights"
            self.events.append("reload")
            folder = Path(body["kwargs"]["weights_path"])
            found = {name: one for file in folder.glob("*.safetensors") for name, one in load_file(file).items()}
            missing, unknown = self.model.load_state_dict(found, strict=False)
            assert not unknown
            assert all(name == "lm_head.weight" for name in missing)
            return {"results": [None]}
        if path == "/reset_prefix_cache":
            self.events.append("reset")
            done = self.resets.pop(0) if self.resets else True
            if done:
                self._cache.clear()
            return {"success": done}
        if path in ("/sleep", "/wake_up"):
            self.events.append(f"{path[1:]} {query}")
            return {"status": "ok"}
        raise Status(404, {"detail": "Not Found"})

    @torch.no_grad()
    def _complete(self, body: Any) -> Any:
        self.events.append("complete")
        if body["model"] != "tiny":
            raise Status(404, {"error": {"message": f"The model `{body['model']}` does not exist."}})
        generator = torch.Generator().manual_seed(body["seed"])
        ids, prompt, log_probs = [], body["prompt"], []
        reason = "length"
        while len(ids) < body["max_tokens"] and len(prompt) + len(ids) < self.positions:
            place = (*prompt, *ids)
            if place not in self._cache:
                self._cache[place] = self.model(torch.tensor([place])).logits[0, -1].float()
            logits = self._cache[place]
            scores = logits.clone()
            for column, bias in body.get("logit_bias", {}).items():
                scores[int(column)] += bias
            if body["temperature"]:
                token = int(torch.multinomial((scores / body["temperature"]).softmax(-1), 1, generator=generator))
            else:
                token = int(scores.argmax())
            ids.append(token)
            log_probs.append(float(logits.log_softmax(-1)[token]))
            if token in (*self.ends, *body["stop_token_ids"]):
                reason = "stop"
                break
        return {
            "model": "tiny",
            "choices": [
                {
                    "index": 0,
                    "token_ids": ids,
                    "prompt_token_ids": prompt,
                    "finish_reason": reason,
                    "logprobs": {"token_logprobs": log_probs},
                }
            ],
        }
