"""Writes what an exported graph needs to be run: tokenizer, configuration, and a script that uses both."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_distill.export import standalone
from hf_distill.models.tokenizers import longest_input

if TYPE_CHECKING:
    from hf_distill.export.base import FinishedStudent

TOKENIZER = "tokenizer.json"
SCRIPT = "run.py"


def write_beside(student: FinishedStudent, into: Path) -> None:
    """Write tokenizer, configuration and script.

    The tokenizer's file itself says where texts are cut and how they are padded, as the package `tokenizers` reads
    nothing else. A tokenizer without such a file is saved as it is, without the script.

    Args:
        student: The student.
        into: The directory.
    """
    student.model.config.save_pretrained(into)  # with the labels that an adapter has and its base has not
    student.tokenizer.save_pretrained(into)
    if (prompts := student.directory / standalone.PROMPTS).is_file():
        shutil.copy(prompts, into / prompts.name)
    inside: Any = getattr(student.tokenizer, "backend_tokenizer", None)
    if inside is None:
        return
    (into / TOKENIZER).write_text(_whole(student, inside), encoding="utf-8")
    shutil.copyfile(standalone.__file__, into / SCRIPT)


def _whole(student: FinishedStudent, inside: Any) -> str:
    """Return the content of `tokenizer.json`, with the length of texts and the padding."""
    from tokenizers import Tokenizer

    told = student.tokenizer
    tokenizer = Tokenizer.from_str(inside.to_str())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if (limit := longest(student)) is not None:
        tokenizer.enable_truncation(limit, direction=told.truncation_side)
    if told.pad_token is not None:
        tokenizer.enable_padding(
            direction=told.padding_side,
            pad_id=told.pad_token_id,
            pad_type_id=told.pad_token_type_id,
            pad_token=told.pad_token,
        )
    return json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False)


def longest(student: FinishedStudent) -> int | None:
    """Return how many tokens of a text the student reads; None for no limit."""
    own = getattr(getattr(student.model, "sentence_encoding", None), "max_length", None)
    known = (own, longest_input([student.config], [student.tokenizer]))
    return min((one for one in known if one is not None), default=None)
