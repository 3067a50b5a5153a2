"""Completions that a model writes once: stored in shards as they are written, and found again by what decides them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hf_distill import parallel
from hf_distill.completions.backends import Writer
from hf_distill.completions.sampling import Completion, Sampling
from hf_distill.errors import UserError
from hf_distill.files.atomic import check_writable, write_atomic
from hf_distill.files.fingerprint import fingerprint
from hf_distill.files.shared import check_shared

# Folder inside the cache of `datasets`, so that HF_HOME and HF_DATASETS_CACHE apply to it too.
FOLDER = "hf_distill-completions"
FORMAT = 1
# Number of completions of a shard. If a run is killed, it loses the shard that it was writing.
SHARD = 128


def default_root() -> Path:
    """Return the folder of stored completions."""
    from datasets import config

    return Path(config.HF_DATASETS_CACHE) / FOLDER


@dataclass(frozen=True)
class Store:
    """The completions that one model writes of some prompts, in one way.

    A shard holds the completions of some prompts, which are sorted by their tokens first. Its name is a hash of these
    prompts and of all that decides what is written, and so are its draws: whoever writes it, in whichever run or
    process, writes the same bytes. So runs with the same prompts share the work, also at the same time.

    Attributes:
        open: Returns what writes; called once, and only if something is missing.
        writes: What decides what is written, beside prompts and sampling: fingerprint of the model, backend, ends of a
            text. JSON values.
        sampling: How tokens are drawn.
        per_prompt: Number of completions of a prompt.
        seed: Seed of the draws.
        root: Folder of all stored completions.
        say: Called with lines for the user.
    """

    open: Callable[[], Writer]
    writes: Any
    sampling: Sampling
    per_prompt: int = 1
    seed: int = 0
    root: Path | None = None
    say: Callable[[str], None] = lambda _: None

    @property
    def path(self) -> Path:
        """The folder of the shards."""
        return (self.root or default_root()) / self._key

    @property
    def _key(self) -> str:
        return fingerprint(FORMAT, self.writes, asdict(self.sampling), self.per_prompt, self.seed)

    def of(self, prompts: Sequence[Sequence[int]]) -> list[list[Completion]]:
        """Return the completions of each prompt: those that are stored, and the others written now.

        Several processes share the work; all must call this.

        Args:
            prompts: Token ids of each prompt.

        Raises:
            UserError: The folder cannot be written to, or the model cannot be run.
        """
        order = sorted(range(len(prompts)), key=lambda row: (len(prompts[row]), list(prompts[row])))
        size = max(1, SHARD // self.per_prompt)
        shards = [order[start : start + size] for start in range(0, len(order), size)]
        names = [self._name([list(prompts[row]) for row in shard]) for shard in shards]
        missing = parallel.asked_once(lambda: [number for number, name in enumerate(names) if self._read(name) is None])
        done = f"{len(prompts):,} prompt{'s' * (len(prompts) != 1)} in {len(names):,} shard{'s' * (len(names) != 1)}"
        if not missing:
            self.say(f"completions: found, {done}, in {self.path}")
        else:
            what = f"{len(missing):,} of the shards {'are' if len(missing) != 1 else 'is'} to be written"
            self.say(f"completions: {done}, {what}, in {self.path}")
            parallel.asked_once(lambda: check_writable(self.path))
            check_shared(self.path)
            mine = [missing[place] for place in parallel.share_of(len(missing))]
            parallel.together(lambda: self._write(mine, shards, names, prompts))
            parallel.wait()
        parallel.together(lambda: self._check_here(names))
        found: dict[int, list[Completion]] = {}
        for shard, name in zip(shards, names, strict=True):
            held = self._read(name)
            assert held is not None
            every = self.per_prompt
            found |= {row: held[place * every : (place + 1) * every] for place, row in enumerate(shard)}
        return [found[row] for row in range(len(prompts))]

    def _check_here(self, names: Sequence[str]) -> None:
        if any(self._read(name) is None for name in names):
            raise UserError(
                f"{self.path} of {parallel.here()} lacks completions that the first process found there. Name a "
                "directory that all machines share: HF_DATASETS_CACHE (docs/many_machines.md)."
            )

    def _write(
        self,
        mine: Sequence[int],
        shards: Sequence[Sequence[int]],
        names: Sequence[str],
        prompts: Sequence[Sequence[int]],
    ) -> None:
        writer: Writer | None = None
        for done, number in enumerate(mine):
            if self._read(names[number]) is not None:  # another run has written it meanwhile
                continue
            writer = writer or self.open()
            asked = [list(prompts[row]) for row in shards[number] for _ in range(self.per_prompt)]
            written = writer.write(asked, self.sampling, int(names[number][:15], 16))
            write_atomic(self.path / f"{names[number]}.jsonl", "".join(_lines(written)))
            if done + 1 < len(mine) and (done + 1) & done == 0:  # after 1, 2, 4, 8, ... shards
                self.say(f"completions: shard {done + 1:,} of {len(mine):,} of this process is written")

    def _name(self, prompts: list[list[int]]) -> str:
        return fingerprint(self._key, prompts)

    def _read(self, name: str) -> list[Completion] | None:
        """Return the completions of a shard; None if it is not there, or not as it was written."""
        try:
            text = (self.path / f"{name}.jsonl").read_text(encoding="utf-8")
            *rows, last = [json.loads(line) for line in text.splitlines()]
            held = [Completion(tuple(row["ids"]), bool(row["ended"])) for row in rows]
            return held if last == {"checksum": _checksum(rows)} else None
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None


def _lines(written: Sequence[Completion]) -> Iterator[str]:
    rows = [{"ids": list(one.ids), "ended": one.ended} for one in written]
    for row in rows:
        yield f"{json.dumps(row, separators=(',', ':'))}\n"
    yield f"{json.dumps({'checksum': _checksum(rows)})}\n"


def _checksum(rows: Sequence[Any]) -> str:
    return fingerprint(list(rows))
