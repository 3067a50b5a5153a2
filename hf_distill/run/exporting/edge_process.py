"""Measures an exported student in a process that imports neither PyTorch nor Transformers; started by its path.

Reads texts as JSON from standard input, and prints JSON: milliseconds to load, median milliseconds of a text and of
a further token (null if it writes none), the largest memory of the process, the tokens of each text, and the
outputs of the first one.
"""

from __future__ import annotations

import importlib.util
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

# Tokens that are written to measure the time of one.
TOKENS = 24
# Not there on a small device, and not needed.
BLOCKED = ("torch", "transformers", "hf_distill", "onnx", "optimum")


class Blocked:
    """Refuses to import packages, as if they were not installed."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> None:
        """Raise an error for a blocked package."""
        if name.partition(".")[0] in BLOCKED:
            raise ImportError(f"{name} is not there, as on a device without it")


def peak_memory() -> int:
    """Return the largest memory of this process, in bytes.

    Linux also counts in `getrusage` what the process was before it became this program: that of PyTorch.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def token_ms(student: Any, text: str) -> float | None:
    """Return the milliseconds of each further token that a student writes: without those to read the text.

    A text that leaves no positions for them is cut; None if the model has fewer than three.
    """
    while student.positions is not None and len(student.encode([text])["input_ids"][0]) > student.positions // 2:
        if not (text := text[: len(text) // 2]).strip():
            return None
    try:
        started = time.perf_counter()
        student.write(text, 1, ends=False)
        first = time.perf_counter()
        further = len(student.write(text, 1 + TOKENS, ends=False)) - 1
        return (time.perf_counter() - first - (first - started)) / further * 1000 if further else None
    except ValueError:
        return None


def main(directory: Path, threads: int) -> None:
    """Load the student of a directory, run the texts, and print what was measured."""
    texts = json.load(sys.stdin)
    sys.dont_write_bytecode = True  # the folder is published with the student
    sys.meta_path.insert(0, Blocked)
    found = importlib.util.spec_from_file_location("exported", directory / "run.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    started = time.perf_counter()
    student = module.ExportedStudent(directory, threads=threads)
    loaded = time.perf_counter() - started
    first = student(texts[:1])  # also warms up
    times = []
    for text in texts:
        started = time.perf_counter()
        student([text])
        times.append(time.perf_counter() - started)
    token = token_ms(student, texts[0]) if hasattr(student, "write") else None
    assert not set(BLOCKED) & set(sys.modules)
    print(
        json.dumps(
            {
                "load_ms": loaded * 1000,
                "text_ms": statistics.median(times) * 1000,
                "token_ms": token,
                "peak_memory": peak_memory(),
                "ids": [student.encode([text])["input_ids"][0].tolist() for text in texts],
                "first": {name: value.tolist() for name, value in first.items()},
            }
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
