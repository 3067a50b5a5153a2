"""Runs an exported student with onnxruntime, tokenizers and numpy alone.

python run.py "a text" "another text"
python run.py --pair "a question" "a context"
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

HERE = Path(__file__).resolve().parent
PROMPTS = "config_sentence_transformers.json"


class ExportedStudent:
    """An exported student with its tokenizer.

    Args:
        directory: Where it was exported to.
        threads: Number of CPU threads; 0 for one on each core.
    """

    def __init__(self, directory: Path = HERE, threads: int = 0) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(
            str(directory / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        # The file says where texts are cut, and how they are padded.
        self.tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        self.config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        self.inputs = [one.name for one in self.session.get_inputs()]
        self.outputs = [one.name for one in self.session.get_outputs()]
        file = directory / PROMPTS
        said = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        self.prompt = (said.get("prompts") or {}).get(said.get("default_prompt_name"), "")

    def encode(self, texts: list[Any]) -> dict[str, Any]:
        """Return texts, or pairs of texts, as arrays of tokens, padded to the longest."""
        found = self.tokenizer.encode_batch([self.prompt + text if isinstance(text, str) else text for text in texts])
        values = {
            "input_ids": [one.ids for one in found],
            "attention_mask": [one.attention_mask for one in found],
            "token_type_ids": [one.type_ids for one in found],
        }
        return {name: np.array(values[name], np.int64) for name in self.inputs}

    def __call__(self, texts: list[Any]) -> dict[str, Any]:
        """Return the outputs for texts, or pairs of texts, by name: `logits`, `sentence_embedding`, ..."""
        return dict(zip(self.outputs, self.session.run(self.outputs, self.encode(texts)), strict=True))

    def predict(self, texts: list[Any]) -> list[Any]:
        """Return labels with probabilities, tags of tokens, answers or vectors, one for each text."""
        found = self(texts)
        if "sentence_embedding" in found:
            return [[round(float(value), 6) for value in row] for row in found["sentence_embedding"]]
        read = self.tokenizer.encode_batch(texts)
        if "start_logits" in found:
            return [
                self._answer(*one) for one in zip(texts, read, found["start_logits"], found["end_logits"], strict=True)
            ]
        logits = found["logits"]
        if logits.ndim == 2:
            return [self._labels(row) for row in logits]
        names = self._names(logits.shape[-1])
        return [
            [
                (token, names[int(best)])
                for token, best, kept in zip(one.tokens, row.argmax(-1), one.attention_mask, strict=True)
                if kept
            ]
            for one, row in zip(read, logits, strict=True)
        ]

    def _labels(self, logits: Any) -> Any:
        if len(logits) == 1 or self.config.get("problem_type") == "regression":
            return [round(float(value), 6) for value in logits]
        several = self.config.get("problem_type") == "multi_label_classification"
        odds = 1 / (1 + np.exp(-logits)) if several else np.exp(logits - logits.max())
        shares = odds if several else odds / odds.sum()
        return {name: round(float(share), 4) for name, share in zip(self._names(len(logits)), shares, strict=True)}

    def _names(self, count: int) -> list[str]:
        known = {int(index): name for index, name in self.config.get("id2label", {}).items()}
        if len(known) == count:
            return [known[index] for index in range(count)]
        if count < self.tokenizer.get_vocab_size():
            return [f"LABEL_{index}" for index in range(count)]  # labels without names, as Transformers calls them
        return [self.tokenizer.id_to_token(index) or "" for index in range(count)]

    @staticmethod
    def _answer(pair: Any, read: Any, starts: Any, ends: Any) -> str:
        inside = np.array([which == 1 for which in read.sequence_ids])
        scores = np.where(inside, starts, -np.inf)[:, None] + np.where(inside, ends, -np.inf)
        first, last = np.unravel_index(np.triu(np.exp(scores - scores.max())).argmax(), scores.shape)
        return pair[1][read.offsets[first][0] : read.offsets[last][1]]  # type: ignore[no-any-return]


if __name__ == "__main__":
    words = sys.argv[1:]
    pairs = words[:1] == ["--pair"]
    if not words or (pairs and len(words) != 3):
        sys.exit(__doc__)
    student = ExportedStudent()
    for prediction in student.predict([tuple(words[1:3])] if pairs else words):
        print(json.dumps(prediction, ensure_ascii=False))
