"""Runs an exported student that continues texts, with onnxruntime, tokenizers and numpy alone.

python run.py "Once upon a time" "A list is"
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
GENERATION = "generation_config.json"
CACHE = "past_key_values."


class ExportedWriter:
    """An exported student that writes texts, with its tokenizer.

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
        self.tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        # The file says how many tokens the model reads. A text is not cut there: it would go on from its middle.
        self.positions = (self.tokenizer.truncation or {}).get("max_length")
        self.tokenizer.no_truncation()
        self.inputs = {one.name: one.shape for one in self.session.get_inputs()}
        self.caches = [name for name in self.inputs if name.startswith(CACHE)]
        file = directory / GENERATION
        told = (file if file.is_file() else directory / "config.json").read_text(encoding="utf-8")
        ends = json.loads(told).get("eos_token_id")
        self.ends = set(ends if isinstance(ends, list) else [ends])

    def encode(self, texts: list[str]) -> dict[str, Any]:
        """Return one text as arrays of tokens."""
        ids = self.tokenizer.encode(texts[0]).ids
        return {"input_ids": np.array([ids], np.int64), "attention_mask": np.ones((1, len(ids)), np.int64)}

    def __call__(self, texts: list[str]) -> dict[str, Any]:
        """Return the logits behind the last token of a text, by the name `logits`."""
        return {"logits": self.step(self.encode(texts)["input_ids"][0].tolist())[0][None, None]}

    def step(self, new: list[int], past: dict[str, Any] | None = None, before: int = 0) -> tuple[Any, dict[str, Any]]:
        """Return the logits behind some tokens, and the cache with them.

        Args:
            new: The tokens.
            past: The cache of those before; None if there are none.
            before: Their number.
        """
        total = before + len(new)
        if past is None:
            past = {
                name: np.zeros((1, self.inputs[name][1], 0, self.inputs[name][3]), np.float32) for name in self.caches
            }
        feeds = {
            "input_ids": np.array([new], np.int64),
            "attention_mask": np.ones((1, total), np.int64),
            "position_ids": np.arange(before, total)[None],
        }
        logits, *cache = self.session.run(None, {**{k: v for k, v in feeds.items() if k in self.inputs}, **past})
        return logits[0, -1], dict(zip(self.caches, cache, strict=True))

    def write(self, text: str, most: int = 40, *, ends: bool = True) -> list[int]:
        """Return the tokens that follow a text, each the likeliest.

        Args:
            text: The text.
            most: How many at most; fewer where text and tokens together reach the last position of the model.
            ends: Whether it stops at the end of the text.

        Raises:
            ValueError: The text has no tokens, or leaves no position for one; the message says so.
        """
        new = self.tokenizer.encode(text).ids
        if not new:
            raise ValueError("the text is empty: its tokenizer gives no token for it")
        if self.positions is not None:
            most = min(most, self.positions - len(new))
        if most < 1:
            raise ValueError(
                f"the text has {len(new)} tokens, and the model reads at most {self.positions}: shorten it"
            )
        made: list[int] = []
        past, before = None, 0
        while len(made) < most:
            logits, past = self.step(new, past, before)
            before += len(new)
            new = [int(logits.argmax())]
            if ends and new[0] in self.ends:
                break
            made += new
        return made


# The name in the script of every task.
ExportedStudent = ExportedWriter


def main(words: list[str]) -> None:
    """Print what follows some texts; or a line that says what is wrong, and end with status 2."""
    if not words:
        sys.exit(__doc__)
    if missing := [name for name in ("model.onnx", "tokenizer.json", "config.json") if not (HERE / name).is_file()]:
        _end(f"{HERE} is not a whole export: {missing[0]} is missing")
    try:
        student = ExportedWriter()
    except Exception as error:  # each library has its own
        _end(f"{HERE} is not a whole export: {' '.join(str(error).split())}")
    try:
        for text in words:
            text.encode()
            print(json.dumps(student.tokenizer.decode(student.write(text)), ensure_ascii=False), flush=True)
    except UnicodeEncodeError:
        _end("a text is not UTF-8")
    except ValueError as error:
        _end(str(error))


def _end(line: str) -> NoReturn:
    print(f"{Path(__file__).name}: {line}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    if sys.argv[1:] in (["-h"], ["--help"]):
        print(__doc__)
        sys.exit()
    main(sys.argv[1:])
