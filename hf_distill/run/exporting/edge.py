"""Starts an exported student in a process of its own, as it would run on a device, and reads what that measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_distill.errors import UserError
from hf_distill.export.beside import SCRIPT, longest
from hf_distill.report.exports import Edge
from hf_distill.run.exporting import edge_process

if TYPE_CHECKING:
    from hf_distill.export import FinishedStudent, Session

# A process that takes longer does not answer any more.
PATIENCE = 600.0
# Outputs for the same tokens in two processes.
_SAME = 1e-4


def on_edge(
    directory: Path, student: FinishedStudent, session: Session, texts: Sequence[str], threads: int
) -> Edge | None:
    """Return what a process without PyTorch measures of an exported student; None if it has no script.

    Args:
        directory: Where it was exported to.
        student: The student.
        session: The same, opened here.
        texts: Texts, at least one.
        threads: Number of CPU threads.

    Raises:
        UserError: The process fails, or gives other tokens or outputs than here.
    """
    if not (directory / SCRIPT).is_file():
        return None
    found = _run(directory, texts, threads)
    _check(directory, student, session, texts, found)
    return Edge(found["load_ms"], found["text_ms"], found["peak_memory"], len(texts), threads, found["token_ms"])


def _run(directory: Path, texts: Sequence[str], threads: int) -> dict[str, Any]:
    try:
        done = subprocess.run(
            # Isolated: neither the directory of this file nor PYTHONPATH is searched for modules.
            [sys.executable, "-I", str(edge_process.__file__), str(directory), str(threads)],
            input=json.dumps(list(texts)),
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=PATIENCE,
            env={**os.environ, "PYTHONIOENCODING": "utf-8"},
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise UserError(
            f"{directory} takes more than {PATIENCE:.0f} seconds for {len(texts)} texts in a process of its own. "
            "Without measuring its speed: report.latency=false"
        ) from error
    if done.returncode != 0:
        reason = next(iter(done.stderr.strip().splitlines()[-1:]), f"exit status {done.returncode}")
        raise UserError(f"{directory} does not run without PyTorch: {reason}")
    read: dict[str, Any] = json.loads(done.stdout)
    return read


def _check(
    directory: Path, student: FinishedStudent, session: Session, texts: Sequence[str], found: dict[str, Any]
) -> None:
    limit = longest(student)
    prompt = getattr(getattr(student.model, "sentence_encoding", None), "prompts", None)
    for text, ids in zip(texts, found["ids"], strict=True):
        whole = f"{prompt.text if prompt is not None else ''}{text}"
        wanted = student.tokenizer(whole, truncation=limit is not None, max_length=limit)
        if list(wanted["input_ids"]) != ids:
            raise UserError(
                f"{directory}: its tokenizer.json gives other tokens than the student's tokenizer for a text of the "
                "eval split, so that the student would read something else than it has learned. It is not usable."
            )
        if text == texts[0]:
            inputs = {name: np.array([value], np.int64) for name, value in wanted.items()}
            for name, value in session.alone(inputs).items():
                if not np.allclose(value, np.array(found["first"][name]), atol=_SAME, rtol=_SAME):
                    raise UserError(f"{directory} gives another result in a process of its own ({name}).")
