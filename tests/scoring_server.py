"""A server that scores tokens with a tiny real model, and speaks as vLLM, SGLang or OpenAI's servers do."""

from __future__ import annotations

from functools import cache, cached_property
from pathlib import Path
from typing import Any

from fake_server import FakeServer, Status

NAME = "teacher"


@cache
def _model(directory: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(directory).eval()


class Scorer:
    """What the server answers.

    Args:
        directory: Of the model.
        most: Most log-probabilities of a token; None for no limit.
        longest: Most tokens of a text.
    """

    def __init__(self, directory: Path, most: int | None = None, longest: int = 64) -> None:
        self.directory, self.most, self.longest = directory, most, longest
        self.name = NAME

    @property
    def model(self) -> Any:
        return _model(self.directory)

    @cached_property
    def tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.directory)

    def __call__(self, path: str, body: Any) -> Any:
        """Return the answer to a request."""
        known = {
            "/v1/models": self.models,
            "/tokenize": self.tokenize,
            "/v1/completions": self.completions,
            "/generate": self.generate,
        }
        if path not in known:
            raise Status(404, {"detail": "Not Found"})
        return known[path](body)

    def models(self, _: Any) -> Any:
        one = {"id": self.name, "object": "model", "root": str(self.directory), "max_model_len": self.longest}
        return {"object": "list", "data": [one]}

    def tokenize(self, body: Any) -> Any:
        ids = self.tokenizer(body["prompt"], add_special_tokens=body["add_special_tokens"])["input_ids"]
        return {"tokens": ids, "count": len(ids), "max_model_len": self.longest}

    def log_probabilities(self, ids: list[int]) -> list[list[float]]:
        """Return those of each token but the first."""
        import torch

        if max(ids) >= self.model.config.vocab_size:
            raise Status(400, {"error": {"message": f"Token id {max(ids)} is out of vocabulary", "code": 400}})
        with torch.no_grad():
            return self.model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1).tolist()

    def completions(self, body: Any) -> Any:
        """vLLM."""
        if body["model"] != self.name:
            raise Status(404, {"error": {"message": f"The model `{body['model']}` does not exist.", "code": 404}})
        ids, top = body["prompt"], body["prompt_logprobs"]
        wanted = len(self.tokenizer) if top == -1 else top
        if self.most is not None and wanted > self.most:
            said = f"Requested prompt logprobs of {wanted}, which is greater than max allowed: {self.most}"
            raise Status(400, {"error": {"message": said, "type": "BadRequestError", "code": 400}})
        if len(ids) + body["max_tokens"] > self.longest:
            said = f"This model's maximum context length is {self.longest} tokens."
            raise Status(400, {"error": {"message": said, "type": "BadRequestError", "code": 400}})
        cells: list[Any] = [None]
        for own, row in zip(ids[1:], self.log_probabilities(ids), strict=True):
            best = sorted(range(len(row)), key=lambda one: -row[one])[:wanted]
            order = [own, *(one for one in best if one != own)]  # the text's own token comes first
            cells.append(
                {
                    str(one): {"logprob": row[one], "rank": 1, "decoded_token": self.tokenizer.decode([one])}
                    for one in order
                }
            )
        choice = {"index": 0, "text": "x", "prompt_token_ids": ids, "prompt_logprobs": cells, "finish_reason": "length"}
        return {"id": "cmpl-1", "object": "text_completion", "model": self.name, "choices": [choice]}

    def generate(self, body: Any) -> Any:
        """SGLang."""
        ids, start, top = body["input_ids"], body["logprob_start_len"], body["top_logprobs_num"]
        own: list[Any] = [[None, ids[start], None]]
        best: list[Any] = [None]
        for token, row in list(zip(ids[1:], self.log_probabilities(ids), strict=True))[start:]:
            own.append([row[token], token, None])
            best.append([[row[one], one, None] for one in sorted(range(len(row)), key=lambda one: -row[one])[:top]])
        return {"text": "", "meta_info": {"input_token_logprobs": own, "input_top_logprobs": best}}


def scoring(directory: Path, **settings: Any) -> FakeServer:
    """Return a server of a model, not running yet."""
    return FakeServer(Scorer(directory, **settings))
