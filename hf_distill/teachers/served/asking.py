"""Asks a server about texts, and reads what it says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

import numpy as np

from hf_distill.errors import UserError
from hf_distill.servers import Servers
from hf_distill.teachers.served.apis import Api, Request, Unusable
from hf_distill.teachers.served.scored import TextRows, scored


@dataclass(frozen=True)
class Asked:
    """The rows of one example.

    Attributes:
        ids: Its tokens without padding, up to the last one that a row predicts.
        at: Places in `ids` of the tokens that its rows predict, ascending; at least one.
    """

    ids: tuple[int, ...]
    at: tuple[int, ...]


@dataclass(frozen=True)
class Known:
    """What a server says about its model.

    Attributes:
        root: The files it was loaded from, if the server tells: the same name may be another model tomorrow.
        longest: Most tokens of a text; None if it does not say.
    """

    root: str = ""
    longest: int | None = None


@dataclass(frozen=True)
class Asking:
    """How a model behind a server is asked.

    Attributes:
        servers: Where it is.
        api: What kind of server it is.
        model: What the server calls it.
        top: How many of the likeliest tokens are asked for at each place.
        classes: Number of tokens of the vocabulary.
        width: Number of columns of the model, as far as it is known: a few after the vocabulary may be padding.
        known: What the servers say about the model.
    """

    servers: Servers
    api: Api
    model: str
    top: int
    classes: int
    width: int
    known: Known = Known()

    def at(self, url: str) -> Asking:
        """Return the same for one of the servers."""
        return replace(self, servers=self.servers.at(url))

    @property
    def every(self) -> bool:
        """Whether all tokens of the vocabulary are asked for."""
        return self.top == self.classes

    def body(self, one: Asked) -> dict[str, Any]:
        """Return the request about an example."""
        return self.api.body(self.model, self._request(one), every=self.every)

    def read(self, one: Asked, answer: Any) -> TextRows:
        """Return the rows that an answer has for an example.

        Raises:
            Unusable: It is not an answer to what was asked.
        """
        cells = self.api.read(self.model, self._request(one), answer)
        some = [cells[at - one.at[0]] for at in one.at]
        return scored(some, [one.ids[at] for at in one.at], self.top, self.classes, self.width)

    def _request(self, one: Asked) -> Request:
        return Request(one.ids, one.at[0] - 1, self.top)

    def key(self, one: Asked) -> bytes:
        """Return what stands for everything that decides an answer."""
        content = blake2b(digest_size=16)
        names = (self.api.name, self.model, self.known.root, self.top, self.classes)
        for part in (repr(names).encode(), np.array(one.ids, "<i8").tobytes(), np.array(one.at, "<i8").tobytes()):
            content.update(len(part).to_bytes(8, "little") + part)
        return content.digest()

    def ask(self, wanted: Sequence[Asked], *, again: bool = False) -> Iterator[tuple[Asked, TextRows]]:
        """Yield the rows of examples as they come; what cannot be used is asked for once more.

        Raises:
            UserError: The server refuses, does not answer, or twice answers what cannot be used.
        """
        self._check_lengths(wanted)
        failed: list[Asked] = []
        for number, answer in self.servers.post_all(self.api.path, [self.body(one) for one in wanted]):
            try:
                yield wanted[number], self.read(wanted[number], answer)
            except Unusable as error:
                if again:
                    raise UserError(
                        f"for a text of {len(wanted[number].ids)} tokens the server twice answered {error}. Nothing "
                        f"can be learned from that: look at {self.model} and at how its server was started.",
                        key="url",
                    ) from None
                failed.append(wanted[number])
        if failed:
            yield from self.ask(failed, again=True)

    def _check_lengths(self, wanted: Sequence[Asked]) -> None:
        longest, limit = max((len(one.ids) for one in wanted), default=0), self.known.longest
        # One more is generated, or counted as if it were.
        if limit is not None and longest >= limit:
            raise UserError(
                f"a text has {longest:,} tokens, and the server takes fewer than {limit:,}. Start it with "
                f"{self.api.longer} {longest + 1}, or shorten the texts (data: {{max_length: {limit - 1}}}).",
                key="url",
            )
