"""Runs an exported student with onnxruntime, tokenizers and numpy alone.

python run.py "a text" "another text"
python run.py --pair "a question" "a context"
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, NoReturn

try:
    import numpy as np
    import onnxruntime
    from tokenizers import Tokenizer
except ImportError as error:
    if __name__ != "__main__":
        raise
    sys.exit(f"{error}: pip install onnxruntime tokenizers numpy")

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
        self.answering = (self.config.get("task_specific_params") or {}).get("question-answering")
        special = _read(directory / "tokenizer_config.json")
        names = [special.get(name) for name in ("cls_token", "bos_token")]
        self.starts = [self.tokenizer.token_to_id(one) for one in names if isinstance(one, str)]
        self.inputs = [one.name for one in self.session.get_inputs()]
        self.outputs = [one.name for one in self.session.get_outputs()]
        said = _read(directory / PROMPTS)
        self.prompt = (said.get("prompts") or {}).get(said.get("default_prompt_name"), "")

    def encode(self, texts: list[Any]) -> dict[str, Any]:
        """Return texts, or pairs of texts, as arrays of tokens, padded to the longest."""
        return self._arrays(
            self.tokenizer.encode_batch([self.prompt + text if isinstance(text, str) else text for text in texts])
        )

    def _arrays(self, found: list[Any]) -> dict[str, Any]:
        if not found[0].ids:
            raise ValueError("the text is empty: its tokenizer gives no token for it")
        values = {
            "input_ids": [one.ids for one in found],
            "attention_mask": [one.attention_mask for one in found],
            "token_type_ids": [one.type_ids for one in found],
        }
        return {name: np.array(values[name], np.int64) for name in self.inputs}

    def __call__(self, texts: list[Any]) -> dict[str, Any]:
        """Return the outputs for texts, or pairs of texts, by name: `logits`, `sentence_embedding`, ..."""
        return self._run(self.encode(texts))

    def _run(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return dict(zip(self.outputs, self.session.run(self.outputs, inputs), strict=True))

    def predict(self, texts: list[Any]) -> list[Any]:
        """Return labels with probabilities, tags of tokens, answers or vectors, one for each text.

        Raises:
            ValueError: It cannot read a text; the message says why.
        """
        if self.answering is not None:
            if any(isinstance(pair, str) for pair in texts):
                raise ValueError('it answers questions: wanted --pair "a question" "a context"')
            return [self._answer(self.answering, *pair) for pair in texts]
        found = self(texts)
        if "sentence_embedding" in found:
            return [[round(float(value), 6) for value in row] for row in found["sentence_embedding"]]
        logits, read = found["logits"], self.tokenizer.encode_batch(texts)
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

    def _answer(self, told: dict[str, Any], question: str, context: str) -> str:
        """Return the best answer of all windows of a long context; "" if that there is none is more likely."""
        question = question.lstrip()
        self._check_room(question)
        first = self.tokenizer.encode(question, context)
        best, nothing, text = -np.inf, np.inf, ""
        for read in (first, *first.overflowing):
            found = self._run(self._arrays([read]))
            start, end = (found[f"{name}_logits"][0].astype(np.float64) for name in ("start", "end"))
            inside = np.array([which == 1 for which in read.sequence_ids])
            scores = np.where(inside, start, -np.inf)[:, None] + np.where(inside, end, -np.inf)
            length = np.arange(len(start)) - np.arange(len(start))[:, None] + 1
            scores[(length < 1) | (length > told["max_answer_len"])] = -np.inf
            at, to = np.unravel_index(scores.argmax(), scores.shape)
            if scores[at, to] > best:
                best, text = scores[at, to], context[read.offsets[at][0] : read.offsets[to][1]]
            empty = self._nothing(read)
            nothing = min(nothing, start[empty] + end[empty])
        return "" if told["handle_impossible_answer"] and nothing > best else text

    def _check_room(self, question: str) -> None:
        """Refuse a question that leaves no room for a part of the context in each window."""
        if (cut := self.tokenizer.truncation) is None:
            return
        self.tokenizer.no_truncation()
        taken = len(self.tokenizer.encode(question, "").ids)
        self.tokenizer.enable_truncation(**cut)
        if taken + cut["stride"] >= cut["max_length"]:
            raise ValueError(f"the question is too long: {cut['max_length']} tokens hold it and a part of the context")

    def _nothing(self, read: Any) -> int:
        """Return the position of the token that stands for no answer."""
        special = [at for at, which in enumerate(read.sequence_ids) if which is None]
        found = (at for token in self.starts for at in special if read.ids[at] == token)
        return next(found, 0)


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def main(words: list[str]) -> None:
    """Print the predictions for some texts, or a pair; or a line that says what is wrong, and end with status 2."""
    pairs = words[:1] == ["--pair"]
    if not words or (pairs and len(words) != 3):
        sys.exit(__doc__)
    if missing := [name for name in ("model.onnx", "tokenizer.json", "config.json") if not (HERE / name).is_file()]:
        _end(f"{HERE} is not a whole export: {missing[0]} is missing")
    try:
        student = ExportedStudent()
    except Exception as error:  # each library has its own
        _end(f"{HERE} is not a whole export: {' '.join(str(error).split())}")
    try:
        for text in words:
            text.encode()
        predictions = student.predict([tuple(words[1:3])] if pairs else words)
    except UnicodeEncodeError:
        _end("a text is not UTF-8")
    except ValueError as error:
        _end(str(error))
    for prediction in predictions:
        print(json.dumps(prediction, ensure_ascii=False))


def _end(line: str) -> NoReturn:
    print(f"{Path(__file__).name}: {line}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    if sys.argv[1:] in (["-h"], ["--help"]):
        print(__doc__)
        sys.exit()
    main(sys.argv[1:])
