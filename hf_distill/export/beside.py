"""Writes what an exported graph needs to be run: tokenizer, configuration, and a script that uses both."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_distill.models.tokenizers import longest_input

if TYPE_CHECKING:
    from hf_distill.export.base import FinishedStudent

TOKENIZER = "tokenizer.json"
SCRIPT = "run.py"
# Copied, and never imported here: they import onnxruntime, which only who exports has.
SCRIPTS = Path(__file__).parent
# Files of the student that the scripts read, where it has them.
READ = ("config_sentence_transformers.json", "generation_config.json")


def write_beside(student: FinishedStudent, into: Path) -> None:
    """Write tokenizer, configuration and script.

    The tokenizer's file itself says where texts are cut and how they are padded, as the package `tokenizers` reads
    nothing else. A tokenizer without such a file is saved as it is, without the script.

    Args:
        student: The student.
        into: The directory.
    """
    config = copy.deepcopy(student.model.config)  # with the labels that an adapter has and its base has not
    if settings := student.reading.settings:
        config.task_specific_params = {**(getattr(config, "task_specific_params", None) or {}), **settings}
    config.save_pretrained(into)
    student.tokenizer.save_pretrained(into)
    for name in READ:
        if (told := student.directory / name).is_file():
            shutil.copy(told, into / name)
    inside: Any = getattr(student.tokenizer, "backend_tokenizer", None)
    if inside is None:
        return
    (into / TOKENIZER).write_text(_whole(student, inside), encoding="utf-8")
    shutil.copyfile(SCRIPTS / ("standalone_writing.py" if student.writes else "standalone.py"), into / SCRIPT)


def _whole(student: FinishedStudent, inside: Any) -> str:
    """Return the content of `tokenizer.json`, with the length of texts and the padding."""
    from tokenizers import Tokenizer

    told = student.tokenizer
    tokenizer = Tokenizer.from_str(inside.to_str())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if (limit := longest(student)) is not None:
        reading = student.reading
        tokenizer.enable_truncation(limit, stride=reading.stride, strategy=reading.cuts, direction=told.truncation_side)
    if told.pad_token is not None:
        tokenizer.enable_padding(
            direction=told.padding_side,
            pad_id=told.pad_token_id,
            pad_type_id=told.pad_token_type_id,
            pad_token=told.pad_token,
        )
    return json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False)


def longest(student: FinishedStudent) -> int | None:
    """Return how many tokens of a text the student reads; None for no limit.

    That is the length of its training and evaluation, so that its predictions are those that were evaluated. A prompt
    is not cut there: what is written would go on from its middle. It has as many tokens as the model has positions.
    """
    own = None if student.writes else student.reading.max_length
    known = (own, longest_input([student.config], [student.tokenizer]))
    return min((one for one in known if one is not None), default=None)
