"""Ends all processes of a run with one line if one of them ends, stalls or fails, instead of waiting for it in vain."""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing.connection import Client, Connection, answer_challenge, deliver_challenge
from multiprocessing.connection import wait as ready
from typing import Any

from hf_distill import parallel
from hf_distill.run.ended import Ended, Lost, ended_by

logger = logging.getLogger(__name__)

# Seconds without a sign of life after which a process is given up. A thread of its own gives them, so that a long step,
# evaluation or checkpoint is not a silence: only a process that is stopped, or a machine that is gone, is silent.
SILENCE = 50.0
BEAT = 1.0
# Seconds that the other processes get to end by themselves, as they do if all have the same error.
GRACE = 5.0
# Seconds that the others wait for the last line of the first process: a launcher ends all when one has ended.
LAST_LINE = 10.0
# Seconds that the processes get to join each other.
JOIN = 2.0
# Bytes of a message at most. `ended.MOST` characters fit, also as JSON writes those that are not ASCII.
SIZE = 10_000


@dataclass(frozen=True)
class _Process:
    host: str
    pid: int


class Companions:
    """One process of a run that watches the others: the first process hears all, and tells all what it hears.

    Args:
        resume: Returns the sentence about what the same command does again.
    """

    def __init__(self, resume: Callable[[], str] = str) -> None:
        self._resume = resume
        self._rank = 0
        self._all: list[_Process] = []
        self._connections: dict[int, Connection[Any, Any]] = {}
        self._sending = threading.Lock()
        self._silent: dict[int, float] = {}
        self._closed: set[int] = set()
        self._gone: set[int] = set()
        self._news: Ended | None = None
        self._over = False
        self._is_news, self._leaving = threading.Event(), threading.Event()

    # ---- Beginning ----

    def connect(self) -> None:
        """Begin to watch. All processes call this, once they are connected."""
        if self._all or parallel.started() < 2:
            return
        self._rank = parallel.rank()
        listener: socket.socket | None = None
        invitation: tuple[int, bytes] | None = None
        if self._rank == 0:
            place = "127.0.0.1" if parallel.on_one_machine() else ""
            listener = socket.create_server((place, 0), backlog=parallel.started())  # all connect at the same moment
            invitation = listener.getsockname()[1], secrets.token_bytes(32)
        told = parallel.from_all((_Process(socket.gethostname(), os.getpid()), invitation))
        self._all = [one for one, _ in told]
        _WATCHES.append(self)
        port, key = told[0][1] or (0, b"")
        if listener is not None:
            _in_a_thread(partial(self._admit, listener, key))
        else:
            _in_a_thread(partial(self._join, port, key))
        _in_a_thread(self._watch)

    def _take(self, rank: int, connection: Connection[Any, Any]) -> None:
        self._silent[rank] = 0.0
        self._connections[rank] = connection

    def _admit(self, listener: socket.socket, key: bytes) -> None:
        """Admit the other processes, each of which knows the key."""
        listener.settimeout(BEAT)
        while not self._over and len(self._connections) < self._wanted:
            with suppress(OSError):
                accepted, _ = listener.accept()
                accepted.setblocking(True)
                # In a thread of its own: a stranger, such as a scanner of ports, may connect and say nothing.
                _in_a_thread(partial(self._welcome, Connection(accepted.detach()), key))
        listener.close()

    def _welcome(self, connection: Connection[Any, Any], key: bytes) -> None:
        try:
            deliver_challenge(connection, key)
            answer_challenge(connection, key)
            self._take(json.loads(connection.recv_bytes(SIZE))["rank"], connection)
        except Exception:  # a stranger, who does not know the key
            connection.close()

    def _join(self, port: int, key: bytes) -> None:
        host = "127.0.0.1" if parallel.on_one_machine() else parallel.first_machine()
        try:
            connection = Client((host, port), authkey=key)
            connection.send_bytes(json.dumps({"rank": self._rank}).encode())
        except Exception as error:  # such as a firewall
            logger.warning(
                "%s cannot connect to the first process, at %s:%s (%s). If one of them ends or stalls, the other waits "
                "for it until a time limit of the launcher or of the exchange (ddp_timeout)",
                *(parallel.here(), host, port, error),
            )
        else:
            self._take(0, connection)

    @property
    def _wanted(self) -> int:
        """Number of connections of this process, once all have joined."""
        return 1 if self._rank else len(self._all) - 1

    def close(self) -> None:
        """Stop watching, and let the others know that this process has said all."""
        self._over = True
        for connection in self._connections.values():
            with suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as own:
                own.shutdown(socket.SHUT_RDWR)

    def forget(self) -> None:
        """Close the connections of the parent, in a process that was forked off."""
        self._over = True
        for connection in self._connections.values():
            with suppress(OSError):
                connection.close()

    # ---- Watching ----

    def _watch(self) -> None:
        before = time.monotonic()
        while not self._over:
            self._hear()
            # Time for which this process was suspended itself, with all the others, does not count as their silence.
            passed, before = min(time.monotonic() - before, 2 * BEAT), time.monotonic()
            self._send({"beat": True})
            for rank in self._open():
                self._silent[rank] += passed
                if self._silent[rank] > SILENCE and rank not in self._gone:
                    self._hear_of(Ended(rank, 1, f"has not been heard of for {SILENCE:.0f} s"))

    def _open(self) -> list[int]:
        return [rank for rank in [*self._connections] if rank not in self._closed]

    def _hear(self) -> None:
        """Hear the others for the time between two beats."""
        until = time.monotonic() + BEAT
        while (left := until - time.monotonic()) > 0:
            here: dict[Any, int] = {self._connections[rank]: rank for rank in self._open()}
            if not here:
                time.sleep(min(left, 0.1))
                continue
            for connection in ready([*here], left):
                self._read(here[connection], connection)

    def _read(self, rank: int, connection: Any) -> None:
        try:
            said = json.loads(connection.recv_bytes(SIZE))
        except (OSError, EOFError, ValueError):
            self._closed.add(rank)
            if rank not in self._gone:
                self._hear_of(Ended(rank, 1, "has ended without a word: it was killed, or out of memory"))
            return
        self._silent[rank] = 0.0
        if "ended" in said:
            self._hear_of(Ended(**said["ended"]))

    def _hear_of(self, ended: Ended) -> None:
        """Note how a process has ended; the first process tells the others."""
        self._gone.add(ended.rank)
        if not ended.status or self._news is not None or self._over:
            return
        self._news = ended
        self._is_news.set()
        if self._rank == 0:
            self._send({"ended": asdict(ended)})
        _in_a_thread(self._end)

    def _send(self, message: dict[str, Any]) -> None:
        content = json.dumps(message).encode()
        for rank in self._open():
            with self._sending, suppress(OSError, ValueError):
                self._connections[rank].send_bytes(content)

    # ---- The end ----

    def _end(self) -> None:
        """End this process, if its main thread does not by itself: it may wait for the others without end."""
        if self._news is not None and self._news.signal and not self._leaving.is_set():
            os.kill(os.getpid(), self._news.signal)  # so that it ends as if it had got the signal itself
        if self._leaving.wait(GRACE):
            return
        lost = self._lost()
        with suppress(Exception):
            lost.say()
        os._exit(lost.status)

    def _lost(self) -> Lost:
        assert self._news is not None
        rank, here = self._news.rank, socket.gethostname()
        left = [one for one, process in enumerate(self._all) if process.host == here and one != rank]
        process = self._all[rank]
        line = f"process {rank} ({process.host}, {process.pid}) {self._news.text}."
        says = min(left, default=rank)  # alone on its machine, one that was given up says it itself
        return Lost(f"{line}{self._resume()}" if self._rank == says else "", self._news.status)

    def leave(self, error: BaseException | None) -> None:
        """Tell the others how this process ends.

        Args:
            error: The error that ends it; None if it has done all.

        Raises:
            Lost: The error is a consequence of the end of another process.
        """
        self._leaving.set()
        if not self._all:
            return
        if error is not None and parallel.is_lost_connection(error):
            if self._is_news.wait(GRACE):
                raise self._lost() from None
            text = " ".join(str(error).split())[:200]
            raise Lost(f"the connection to another process of the run was lost ({text}).{self._resume()}", 1) from None
        ended = ended_by(self._rank, error)
        until = time.monotonic() + JOIN
        while error is not None and time.monotonic() < until and len(self._connections) < self._wanted:
            time.sleep(0.01)  # an error right at the start, before the others have joined
        self._send({"ended": asdict(ended)})
        if ended.signal and self._rank:  # a launcher ends all once one has ended, and the first has a line to say
            until = time.monotonic() + LAST_LINE
            while time.monotonic() < until and 0 not in self._closed:
                time.sleep(0.05)


def _in_a_thread(work: Callable[[], None]) -> None:
    threading.Thread(target=work, daemon=True).start()


_WATCHES: list[Companions] = []


def _forget() -> None:
    """Close the connections in a process that was forked off, which must not seem to be its parent."""
    for watch in _WATCHES:
        watch.forget()
    _WATCHES.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


_current: Companions | None = None


@contextmanager
def watching(resume: Callable[[], str]) -> Iterator[None]:
    """Context manager of a run: within it, the processes watch each other once they are connected (`connect`).

    Args:
        resume: Returns the sentence about what the same command does again.

    Raises:
        Lost: Another process has ended or stalled.
    """
    global _current
    _current = watch = Companions(resume)
    try:
        yield
    except BaseException as error:
        watch.leave(error)
        raise
    else:
        watch.leave(None)


def close() -> None:
    """Close the connections: this process has said all that it has to say."""
    global _current
    if _current is not None:
        _current.close()
    _current = None


def connect() -> None:
    """Begin to watch the other processes, if this one runs a command (`watching`). All processes call this."""
    if _current is not None:
        _current.connect()
