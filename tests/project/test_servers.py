"""The HTTP client: what is asked again and what is not, several servers, and a key that nobody sees."""

from __future__ import annotations

import logging
import pickle
import time
from collections.abc import Iterator
from typing import Any

import fake_server
import pytest
from fake_server import FakeServer, status

from hf_distill import servers as module
from hf_distill.errors import UserError
from hf_distill.servers import Refused, Servers, Unavailable

KEY = "zs8Wq-not-a-real-key"


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    """A server that answers what it was asked; waits are short."""
    monkeypatch.setattr(module, "FIRST_WAIT", 0.01)
    with FakeServer(lambda path, body: {"path": path, "body": body}).running() as server:
        yield server


@pytest.mark.parametrize(
    "fault",
    [
        status(429),
        status(500),
        status(503, Retry_After="0"),
        fake_server.cut,
        fake_server.reset,
        fake_server.changed(lambda _: "<html>starting</html>"),
    ],
)
def test_what_may_pass_is_asked_again(fake: FakeServer, fault: fake_server.Fault) -> None:
    """A night of training would end at the first hiccup of a server, or train on half an answer."""
    fake.faults = [fault, fault]
    assert Servers((fake.url,)).post("/x", [1])["body"] == [1]
    assert len(fake.requests) == 3


@pytest.mark.parametrize("code", [400, 401, 404, 422, 302])
def test_a_refusal_is_told_and_not_asked_again(fake: FakeServer, code: int) -> None:
    """Asked again and again, a wrong request would be paid for again and again, and its reason be lost."""
    fake.faults = [status(code, "k is \x1b[31m at most 20")]
    with pytest.raises(Refused, match="k is") as error:
        Servers((fake.url,)).post("/x", [1])
    again = pickle.loads(pickle.dumps(error.value))  # as other processes are told
    assert (again.status, again.said, str(again)) == (code, error.value.said, str(error.value))
    assert "\x1b" not in str(error.value)
    assert len(fake.requests) == 1


def test_a_server_is_left_in_peace_as_long_as_it_asks(fake: FakeServer) -> None:
    """A client that ignores Retry-After is throttled further, or banned; one that obeys any number waits for days."""
    fake.faults = [status(429, Retry_After="0.4")]
    began = time.monotonic()
    Servers((fake.url,)).post("/x", [1])
    assert time.monotonic() - began >= 0.4
    fake.faults = [status(429, Retry_After="86400")]
    with pytest.raises(Unavailable, match="429"):
        Servers((fake.url,)).post("/x", [1])


def test_a_dead_server_is_told_in_one_line() -> None:
    """A training would wait for ever for a server that nobody started."""
    with FakeServer(lambda path, body: 1).running() as gone:
        pass
    with pytest.raises(Unavailable, match="2 attempts") as error:
        Servers((gone.url,), attempts=2).post("/x", [1])
    assert error.value.key == "url"


def test_a_slow_answer_is_given_up(fake: FakeServer) -> None:
    """Without a timeout, a server that hangs hangs the training."""
    fake.faults = [fake_server.slow(2.0)]
    began = time.monotonic()
    assert Servers((fake.url,), timeout=0.2).post("/x", [1])
    assert time.monotonic() - began < 1.5


def test_another_server_takes_over(fake: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of several servers that dies would end the training, or slow every other request down."""
    monkeypatch.setattr(module, "FIRST_WAIT", 30.0)
    with FakeServer(lambda path, body: {"body": body}).running() as other:
        both = Servers((fake.url, other.url))
        assert sorted(at for at, _ in both.post_all("/x", range(12))) == list(range(12))
        assert len(fake.requests) == len(other.requests) == 6
        assert both.at(fake.url).urls == (fake.url,)
    began = time.monotonic()
    assert [answer["body"] for _, answer in sorted(both.post_all("/x", range(8)))] == list(range(8))
    assert time.monotonic() - began < 10


def test_no_more_requests_than_allowed_are_under_way(fake: FakeServer) -> None:
    """A server that is flooded answers 429, or runs out of memory; one request at a time leaves it idle."""
    fake.answer = lambda path, body: time.sleep(0.02) or body
    assert dict(Servers((fake.url,), concurrency=3).post_all("/x", range(30))) == {at: at for at in range(30)}
    assert fake.most == 3


def test_the_first_failure_ends_all(fake: FakeServer) -> None:
    """Thousands of requests that nobody reads any more would still be paid for."""

    def answer(path: str, body: Any) -> Any:
        time.sleep(0.01)
        if body == 3:
            raise fake_server.Status(400, {"detail": "no"})
        return body

    fake.answer = answer
    with pytest.raises(Refused, match="no"):
        list(Servers((fake.url,), concurrency=2).post_all("/x", range(500)))
    time.sleep(0.05)
    assert len(fake.requests) < 50


def test_the_key_is_sent_and_nowhere_else(
    fake: FakeServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A key in a message or log ends in a report, or in an issue on the web."""
    monkeypatch.setenv("SOME_KEY", KEY)
    own = Servers((fake.url,), key="SOME_KEY")
    with caplog.at_level(logging.DEBUG):
        own.post("/x", [1])
        fake.faults = [status(401, f"wrong key {KEY}")]
        with pytest.raises(Refused, match="SOME_KEY") as error:
            own.post("/x", [1])
    assert fake.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert KEY not in f"{own}{vars(own)}{error.value}{error.value.said}{caplog.text}"
    monkeypatch.delenv("SOME_KEY")
    with pytest.raises(UserError, match="not set"):
        own.check_key()


@pytest.mark.parametrize(
    "url", ["localhost:8000", "ftp://x", "http://", "http://me:pass@host", "https://h/?api_key=abc", "http://h:port"]
)
def test_what_is_no_address_is_refused(url: str) -> None:
    """A key in a URL would be written into the stored recipe and every report."""
    with pytest.raises(UserError) as error:
        Servers((url,))
    assert error.value.key == "url"
    assert "pass" not in str(error.value)
    assert "abc" not in str(error.value)
