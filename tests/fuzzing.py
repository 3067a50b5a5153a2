"""Runs many made-up inputs in processes that are forked off, watched: what each may touch, how long it may take.

An input is right if it is read, or refused with lines. Anything else is a finding: another exception, a line that a
terminal obeys, more than `SECONDS`, or an attempt to write, delete, start, connect or import (`Watch`).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from forked import start, status
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

from hf_distill.errors import UserError
from hf_distill.formatting import LIMIT

SECONDS = 10
# Inputs of one process: what libraries keep of each would grow without end.
TOGETHER = 500
READ, REFUSED = "read", "refused"
ACTIVE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
# A module that stands beside the recipes, and must stay unread.
PLANTED = "planted_code"

_WRITES = {
    *("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod"),
    *(
        "os.utime",
        "os.chown",
        "shutil.rmtree",
        "shutil.move",
        "shutil.copyfile",
        "tempfile.mkstemp",
        "tempfile.mkdtemp",
    ),
}
_STARTS = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "pty.spawn"}
_CONNECTS = {"socket.connect", "socket.bind", "socket.sendto", "socket.getaddrinfo", "urllib.Request"}


class Forbidden(BaseException):
    """An input made the program touch what it must not; no handler of exceptions takes it for its own."""


class Slow(BaseException):
    """An input takes too long."""


@dataclass
class Watch:
    """Forbids, from when it is put up to the end of the process, what reading must not do.

    Attributes:
        allowed: Folders in which files may be written.
        found: What was tried.
        on: Whether it looks.
    """

    allowed: tuple[str, ...] = ()
    found: list[str] = field(default_factory=list)
    on: bool = False

    def put_up(self) -> None:
        sys.dont_write_bytecode = True
        sys.addaudithook(self._look)

    def _look(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.on:
            return
        tried = ""
        if event == "open":
            path, mode, flags = args
            writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            if (writes or set(str(mode or "")) & set("wax+")) and not self._may(path):
                tried = f"open({path!r}, {mode!r})"
        elif event in _WRITES:
            paths = [path for path in args if isinstance(path, str | bytes | os.PathLike)]
            # Below an open folder, as when a tree is removed: the last argument.
            above = f"/proc/self/fd/{args[-1]}" if isinstance(args[-1], int) and args[-1] >= 0 else ""
            if not all(self._may(os.path.join(above, os.fsdecode(path))) for path in paths):
                tried = f"{event}{args!r}"
        elif event in _STARTS or event in _CONNECTS:
            tried = f"{event}{args!r}"
        elif event == "import" and str(args[0]).startswith(PLANTED):
            tried = f"import {args[0]}"
        if tried:
            self.found.append(tried[:300])
            raise Forbidden(tried[:300])

    def _may(self, path: Any) -> bool:
        if isinstance(path, int):  # an open file
            return True
        full = os.path.realpath(os.fsdecode(path))
        return full == os.devnull or any(full == one or full.startswith(one + os.sep) for one in self.allowed)


@dataclass
class Outcomes:
    """How inputs ended: their counts, and what is wrong with some."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def add(self, other: Outcomes) -> None:
        self.counts += other.counts
        self.wrong += other.wrong


def tried(
    inputs: SearchStrategy[Any],
    put: Callable[[Any], None],
    attempt: Callable[[Any], None],
    count: int,
    place: Path,
    first: int = 0,
) -> Outcomes:
    """Return how inputs ended.

    Args:
        inputs: Makes them.
        put: Writes one into the current directory, which is a folder of its own.
        attempt: Reads one. It may write into the caches of libraries and for temporary files, and nowhere else.
        count: Number of inputs.
        place: An empty folder.
        first: Seed of the first process.
    """
    whole = Outcomes()
    for number, begun in enumerate(range(0, count, TOGETHER)):
        folder = place / str(number)
        child = start(lambda folder=folder, begun=begun, number=number: _work(  # type: ignore[misc]
            inputs, put, attempt, min(TOGETHER, count - begun), folder, first + number
        ))  # fmt: skip
        ended = status(child)
        if ended or not (folder / "outcomes.json").exists():
            last = (folder / "last").read_text() if (folder / "last").exists() else "the first"
            whole.add(Outcomes(Counter({"DIED": 1}), [f"a process ended with {ended} at {last[:2000]}"]))
        else:
            found = json.loads((folder / "outcomes.json").read_text())
            whole.add(Outcomes(Counter(found["counts"]), found["wrong"]))
        shutil.rmtree(folder)
    return whole


def _work(
    inputs: SearchStrategy[Any],
    put: Callable[[Any], None],
    attempt: Callable[[Any], None],
    count: int,
    folder: Path,
    number: int,
) -> None:
    import tempfile

    os.nice(10)
    here, cache = folder / "here", folder / "cache"
    for one in (here, cache):
        one.mkdir(parents=True)
    _make_way(cache)
    tempfile.tempdir = str(cache)
    os.chdir(here)
    (here / f"{PLANTED}.py").write_text("raise SystemExit('imported')")
    outcomes, watch = Outcomes(), Watch((str(cache),))
    watch.put_up()
    signal.signal(signal.SIGALRM, _late)
    last = os.open(folder / "last", os.O_CREAT | os.O_RDWR)

    @seed(number)
    @settings(
        max_examples=count, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=[*HealthCheck]
    )
    @given(inputs)
    def every(given_input: Any) -> None:
        shown = repr(given_input)[:1500]
        os.ftruncate(last, 0)
        os.pwrite(last, shown.encode("utf-8", "replace"), 0)
        put(given_input)
        signal.alarm(SECONDS)
        try:
            how, wrong = _ended(attempt, given_input, watch)
        finally:
            signal.alarm(0)
        outcomes.counts[how] += 1
        if wrong:
            outcomes.wrong.append(f"{wrong}\n    from {shown}")

    every()
    (folder / "outcomes.json").write_text(json.dumps({"counts": outcomes.counts, "wrong": outcomes.wrong}))


def _make_way(cache: Path) -> None:
    """Let what libraries store go into a folder."""
    import datasets

    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache / "inductor")  # made when a library is imported
    datasets.config.HF_DATASETS_CACHE = cache / "datasets"
    datasets.disable_progress_bars()


def _late(*_: Any) -> None:
    raise Slow


def _ended(attempt: Callable[[Any], None], given_input: Any, watch: Watch) -> tuple[str, str]:
    """Return how an input ended, and what is wrong with that, if anything."""
    watch.found.clear()
    try:
        watch.on = True
        attempt(given_input)
    except UserError as error:
        watch.on = False
        lines = error.mistakes
        bad = [line for line in lines if ACTIVE.search(line) or "\n" in line or len(line) > LIMIT + 200]
        return (REFUSED, "") if lines and not bad else ("BAD LINE", f"said {bad[:2]!a}"[:800])
    except Slow:
        watch.on = False
        return "HANG", "took too long: " + traceback.format_exc()[-900:]
    except Forbidden as error:
        watch.on = False
        return "TOUCHED", f"tried {error}"
    except BaseException as error:
        watch.on = False
        return "TRACEBACK", f"{type(error).__name__}: {error}"[:300] + traceback.format_exc()[-1200:]
    finally:
        watch.on = False
    return ("TOUCHED", f"tried {watch.found}") if watch.found else (READ, "")


def text_of(value: Any) -> bytes:
    """Return plain values as a recipe's text: JSON is YAML."""
    with suppress(ValueError):
        return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return repr(value).encode("utf-8", "replace")
