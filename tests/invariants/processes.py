"""The jobs of the worker, in two processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import engines


def as_two_processes(job: str, directory: Path, engine: str = "ddp") -> Any:
    """Return the result of a job run by two processes under an engine."""
    from invariants import worker

    (processes, result), _ = engines.run(engine, lambda: worker.done(job, directory), directory / "results")
    assert processes == 2
    return result
