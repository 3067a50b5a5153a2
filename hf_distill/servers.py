"""Ask servers over HTTP: JSON to one of several URLs, with retries, failover and a key from the environment."""

from __future__ import annotations

import json
import os
import random
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from functools import partial
from itertools import count
from multiprocessing.pool import ThreadPool
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from hf_distill.errors import UserError, first_line
from hf_distill.formatting import readable
from hf_distill.locations import require

if TYPE_CHECKING:
    import httpx2

# Statuses after which the same request may succeed: a timeout, too early, too many requests.
_PASSING = (408, 425, 429)
# Seconds of the first wait after a failure, and of the longest; a wait is drawn between its half and its whole.
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
# Most seconds that a server may ask to wait (`Retry-After`) before it counts as not available.
LONGEST_ASKED = 600.0
# Seconds to connect: a host that is not there does not answer at all.
_CONNECT = 10.0
# How much of a server's message is shown.
_SHOWN = 400


class Refused(UserError):
    """A server understood a request and refused it: asking again would not help.

    Args:
        line: The mistake.
        status: HTTP status.
        said: The server's own words.

    Attributes:
        status: HTTP status.
        said: The server's own words.
    """

    def __init__(self, line: str, status: int = 0, said: str = "") -> None:  # defaults: it is pickled by its line
        super().__init__(line)
        self.status, self.said = status, said


class Unavailable(UserError):
    """No server answered, after all attempts."""


class _Passing(Exception):
    """A failure after which another attempt may succeed.

    Args:
        what: What happened.
        wait: Seconds that the server asked to wait; None if it did not say.
    """

    def __init__(self, what: str, wait: float | None = None) -> None:
        super().__init__(what)
        self.wait = wait


@dataclass(frozen=True)
class Servers:
    """One server, or several that answer alike: requests are spread over them, and one that fails is left in peace.

    A request is sent again after a failed connection, an answer that is cut or is not JSON, and the statuses 408, 425,
    429 and 5xx; never after another 4xx. Several threads may use it at once.

    Attributes:
        urls: Where they are, such as `http://localhost:8000`; what follows the host is put before every path.
        key: Name of the environment variable that holds the key, sent as a bearer token; empty for no key. The key is
            read for each request, and is in no attribute, message or log.
        concurrency: Most requests under way at once.
        timeout: Seconds to wait for an answer.
        attempts: How often a request is sent before the servers count as unavailable.
    """

    urls: tuple[str, ...]
    key: str = ""
    concurrency: int = 8
    timeout: float = 300.0
    attempts: int = 8
    _state: _State = field(default_factory=lambda: _State(), repr=False, compare=False)

    def __post_init__(self) -> None:
        """Refuse addresses that are none, or that hold secrets, which would be written into files.

        Raises:
            UserError: A URL cannot be used; `key` is `url`.
        """
        if not self.urls:
            raise UserError("wanted the address of a server, such as http://localhost:8000; found none.", key="url")
        for url in self.urls:
            _check_url(url)
        require("httpx2", "a server's answer")

    def check_key(self) -> None:
        """Refuse a name of an environment variable that is not set.

        Raises:
            UserError: It is not set, or cannot be sent; `key` is `key`.
        """
        self._headers()

    def at(self, url: str) -> Servers:
        """Return one of the servers alone, for what all of them must be told or asked."""
        return replace(self, urls=(url,), _state=_State())

    def get(self, path: str) -> Any:
        """Return the JSON that a server answers to GET.

        Raises:
            Refused: The server refused.
            Unavailable: No server answered.
        """
        return self._ask("GET", path, None)

    def post(self, path: str, body: Any) -> Any:
        """Return the JSON that a server answers to POST.

        Args:
            path: Such as `/v1/completions`.
            body: Sent as JSON.

        Raises:
            Refused: The server refused.
            Unavailable: No server answered.
        """
        return self._ask("POST", path, body)

    def post_all(self, path: str, bodies: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """Yield the number of each request and its answer, as they come, `concurrency` under way at once.

        The first failure is raised; what is under way then is not waited for.

        Raises:
            Refused: A server refused one.
            Unavailable: No server answered one.
        """
        if len(bodies) < 2 or self.concurrency < 2:
            yield from ((at, self.post(path, body)) for at, body in enumerate(bodies))
            return
        # Its threads do not keep the process alive, as those of an executor would.
        pool = ThreadPool(min(self.concurrency, len(bodies)))
        try:
            yield from pool.imap_unordered(partial(_numbered, self, path), enumerate(bodies))
        finally:
            pool.terminate()

    # ---- One request ----

    def _ask(self, method: str, path: str, body: Any) -> Any:
        content = None if body is None else json.dumps(body).encode()
        failures = ["no attempt was made"]
        for attempt in range(self.attempts):
            url = self._state.next_url(self.urls)
            try:
                answer = self._once(method, url.rstrip("/") + path, content)
            except _Passing as error:
                failures.append(f"{url}: {error}")
                if (error.wait or 0) > LONGEST_ASKED:
                    break
                self._state.failed(url, error.wait, attempt)
            else:
                self._state.answered(url)
                return answer
        tried = f"{len(failures) - 1} attempts" if len(failures) > 2 else "1 attempt"
        raise Unavailable(
            f"no answer to {method} {path} after {tried}; the last: {failures[-1]}. Start the server, or wait until it "
            "has less to do, and give the same command again: what was answered before is not asked again.",
            key="url",
        )

    def _once(self, method: str, url: str, content: bytes | None) -> Any:
        import httpx2

        headers = {**self._headers(), **({"Content-Type": "application/json"} if content is not None else {})}
        try:
            client = self._state.client(self.timeout, self.concurrency)
            answer = client.request(method, url, content=content, headers=headers)
        except httpx2.TimeoutException as error:
            raise _Passing(f"no answer within {self.timeout:g} s ({type(error).__name__})") from None
        except httpx2.RequestError as error:
            raise _Passing(self._hide(f"{type(error).__name__}: {first_line(error)}")) from None
        if answer.status_code in _PASSING or answer.status_code >= 500:
            said = self._said(answer)
            raise _Passing(f"status {answer.status_code} ({said})", _asked_wait(answer.headers.get("Retry-After")))
        if answer.status_code != 200:
            raise self._refusal(method, url, answer)
        try:
            return answer.json()
        except ValueError as error:
            raise _Passing(f"the answer is not JSON ({first_line(error)})") from None

    def _refusal(self, method: str, url: str, answer: httpx2.Response) -> Refused:
        status, said = answer.status_code, self._said(answer)
        if status in (401, 403):
            named = f"the key in {self.key}" if self.key else "a request without a key"
            hint = f" It refused {named}: name the environment variable that holds the right one (key: NAME)."
        elif 300 <= status < 400:
            hint = " Name the address it points to: redirects are not followed, since a key would go along."
        else:
            hint = ""
        return Refused(f"{method} {url} was refused with status {status}: {said}.{hint}", status, said)

    def _headers(self) -> dict[str, str]:
        if not self.key:
            return {}
        value = os.environ.get(self.key, "").strip()
        if not value:
            raise UserError(
                f"the environment variable {readable(self.key, 80)} is not set. Wanted the name of the variable that "
                "holds the key of the server, never the key itself.",
                key="key",
            )
        if not (value.isascii() and value.isprintable()):
            raise UserError(f"the key in {self.key} has characters that no header can hold.", key="key")
        return {"Authorization": f"Bearer {value}"}

    def _said(self, answer: httpx2.Response) -> str:
        """Return a server's message in one short line."""
        try:
            found = answer.json()
        except ValueError:
            found = answer.text
        for name in ("error", "message", "detail"):
            if isinstance(found, Mapping) and name in found:
                found = found[name]
        text = re.sub(r"\s+", " ", found if isinstance(found, str) else json.dumps(found)).strip()
        return readable(self._hide(text), _SHOWN).rstrip(".") or "no message"

    def _hide(self, text: str) -> str:
        """Return a text without the key, which a server may quote."""
        value = os.environ.get(self.key, "").strip() if self.key else ""
        return text.replace(value, "...") if value else text


class _State:
    """What the threads share: connections, whose turn it is, and which servers are left in peace until when."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._turn = count()
        self._failures: dict[str, int] = {}
        self._rests: dict[str, float] = {}
        self._client: tuple[int, httpx2.Client] | None = None

    def client(self, timeout: float, connections: int) -> httpx2.Client:
        """Return the connections of this process: a forked one must not share a socket with its parent."""
        import httpx2

        with self._lock:
            if self._client is None or self._client[0] != os.getpid():
                limits = httpx2.Limits(max_connections=connections, max_keepalive_connections=connections)
                times = httpx2.Timeout(timeout, connect=min(_CONNECT, timeout), pool=None)
                self._client = os.getpid(), httpx2.Client(timeout=times, limits=limits)
            return self._client[1]

    def next_url(self, urls: Sequence[str]) -> str:
        """Return whose turn it is among the servers that are not left in peace; wait if all are."""
        while True:
            with self._lock:
                now, turn = time.monotonic(), next(self._turn)
                ready = [url for url in urls if self._rests.get(url, 0.0) <= now]
                if ready:
                    return ready[turn % len(ready)]
                wait = min(self._rests[url] for url in urls) - now
            time.sleep(wait + random.uniform(0, 0.1 * wait))  # so that not all threads come back at once

    def failed(self, url: str, asked: float | None, attempt: int) -> None:
        """Leave a server in peace for as long as it asked, else longer after every failure of it or of the request."""
        with self._lock:
            failures = self._failures[url] = self._failures.get(url, 0) + 1
            longer = min(LONGEST_WAIT, FIRST_WAIT * 2 ** min(max(attempt, failures - 1), 16))
            wait = longer * random.uniform(0.5, 1.0) if asked is None else asked
            self._rests[url] = max(self._rests.get(url, 0.0), time.monotonic() + wait)

    def answered(self, url: str) -> None:
        """Forget the failures of a server."""
        with self._lock:
            self._failures.pop(url, None)


def _numbered(servers: Servers, path: str, request: tuple[int, Any]) -> tuple[int, Any]:
    return request[0], servers.post(path, request[1])


def _asked_wait(value: str | None) -> float | None:
    """Return the seconds of a `Retry-After` header: a number or a date; None if there is none that can be read.

    >>> _asked_wait("3"), _asked_wait("soon"), _asked_wait("Wed, 21 Oct 2015 07:28:00 GMT")
    (3.0, None, 0.0)
    """
    if value is None:
        return None
    if re.fullmatch(r"\s*\d{1,9}(\.\d+)?\s*", value):
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)
    return max(0.0, (moment - datetime.now(timezone.utc)).total_seconds())


def _check_url(url: str) -> None:
    shown = readable(url, 120)
    try:
        parts = urlsplit(url)
        _ = parts.port  # which is read only when asked for
    except ValueError as error:
        raise UserError(f"'{shown}' is not an address ({first_line(error)}).", key="url") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"wanted http://HOST:PORT or https://HOST, found '{shown}'.", key="url")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise UserError(
            f"'{parts.scheme}://{parts.hostname}' is given with a user, a query or a fragment, which would be written "
            "into files. Wanted the plain address; a key goes into an environment variable (key: NAME).",
            key="url",
        )
