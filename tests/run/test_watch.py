"""How the processes of a run watch each other (`run/watch.py`); with real processes: `test_ending_together.py`."""

from __future__ import annotations

import json
import socket
import threading
import time
from typing import Any

import pytest

from hf_distill.errors import UserError
from hf_distill.run import watch
from hf_distill.run.ended import Ended, ended_by


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Two companions in two threads, and a stranger who connects before the second and says nothing."""
    here, both, told = threading.local(), threading.Barrier(2), [None, None]
    strangers = []

    def from_all(value: Any) -> list[Any]:
        if here.rank == 0:
            strangers.append(socket.create_connection(("127.0.0.1", value[1][0])))
        told[here.rank] = value
        both.wait(10)
        return [*told]

    monkeypatch.setattr(watch.parallel, "started", lambda: 2)
    monkeypatch.setattr(watch.parallel, "on_one_machine", lambda: True)
    monkeypatch.setattr(watch.parallel, "rank", lambda: here.rank)
    monkeypatch.setattr(watch.parallel, "from_all", from_all)
    monkeypatch.setattr(watch, "BEAT", 0.05)
    found = [watch.Companions(), watch.Companions()]

    def connect(rank: int) -> None:
        here.rank = rank
        found[rank].connect()

    threads = [threading.Thread(target=connect, args=(rank,)) for rank in range(2)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(10)
    yield found
    for one in found:
        one.close()
        watch._WATCHES.remove(one)
    strangers[0].close()


def until(is_so: Any) -> bool:
    end = time.monotonic() + 5
    while not is_so() and time.monotonic() < end:
        time.sleep(0.01)
    return bool(is_so())


def test_a_stranger_who_says_nothing_keeps_nobody_out(pair: Any) -> None:
    """A scanner of ports on a cluster: the first process waited for its answer, and never watched the others."""
    assert until(lambda: 1 in pair[0]._connections and 0 in pair[1]._connections)
    pair[1].leave(None)
    assert until(lambda: pair[0]._gone == {1})
    assert pair[0]._news is None


def test_a_process_that_was_given_up_ends_too() -> None:
    """One that was suspended and goes on, alone on its machine: the thread that should end it failed, and it waited for
    the others until a time limit of hours."""
    one = watch.Companions(lambda: " Again.")
    one._rank, one._news = 1, Ended(1, 1, "has not been heard of for 50 s")
    one._all = [watch._Process("elsewhere", 1), watch._Process(socket.gethostname(), 2)]
    assert str(one._lost()).endswith("has not been heard of for 50 s. Again.")


@pytest.mark.parametrize("error", [UserError(*["ä" * 2_000] * 20), RuntimeError("ä" * 50_000)])
def test_a_long_message_arrives(error: Exception) -> None:
    """Many mistakes in one recipe were too long to send: the others said that the process was killed."""
    ended = ended_by(1, error)
    assert "ää" in ended.text
    assert len(json.dumps({"ended": vars(ended)})) < watch.SIZE
