"""The files of a cache: shards of a `datasets` data set, and what they are.

A shard appears under its name only once it is whole, with its size and checksum beside it, and `cache.json` only once
every shard is there. Whoever is killed leaves whole shards and nothing else that is taken for one.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_distill.errors import UserError
from hf_distill.files.atomic import check_writable, write_atomic
from hf_distill.files.durable import sha256, sync
from hf_distill.files.lock import FILE as LOCK
from hf_distill.files.records import read_record, write_record

if TYPE_CHECKING:
    import pyarrow as pa  # type: ignore[import-untyped]
    from datasets import Dataset, Features

FORMAT = 1
# Written first: whose cache this is going to be, and how it is cut.
PLAN = "plan.json"
# Written last: the same, and the shards with their checksums.
CACHE = "cache.json"
# Rows that are written together: each time takes some hundred bytes, which would be as many as a few classes' logits.
_TOGETHER = 2**20
# Bytes of the files beside the shards, nearly: once, and for each of them.
_BESIDE, _RECORD = 1200, 400

# What a cache must agree in, in the words of a refusal.
_PARTS = {
    "format": "another version of this package",
    "teacher": "another teacher",
    "kept": "other settings",
}


@dataclass(frozen=True)
class Shards:
    """A directory of shards.

    Attributes:
        path: Where.
        count: How many there are.
    """

    path: Path
    count: int

    def name(self, index: int) -> str:
        """Return the file name of a shard."""
        return f"targets-{index:05d}-of-{self.count:05d}.arrow"

    def finished(self, index: int) -> bool:
        """Whether a shard is whole, as far as its size tells."""
        record, file = self.record(index), self.path / self.name(index)
        return record is not None and file.is_file() and file.stat().st_size == record["bytes"]

    def record(self, index: int) -> dict[str, Any] | None:
        """Return what was noted of a shard when it was written; None where it was not."""
        return read_record(self.path / f"{self.name(index)}.json")

    def write(self, index: int, tables: Iterable[pa.Table], features: Features) -> None:
        """Write a shard: all of it or nothing; nothing if another run has written it meanwhile.

        Raises:
            OSError: There is no room; what was written is gone.
        """
        from datasets.arrow_writer import ArrowWriter

        target = self.path / self.name(index)
        # The token for containers, which may share a directory, a host name and the number 1.
        own = f"{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(4)}"
        temporary = target.with_name(f"_{target.name}.{own}.tmp")
        try:
            writer = ArrowWriter(path=str(temporary), features=features)
            try:
                for table in _together(tables):
                    writer.write_table(table, len(table))
                rows, _ = writer.finalize()
            finally:
                writer.close()
            sync(temporary)
            if self.finished(index):  # by another run, whose checksum may be in `cache.json` by now
                return
            record = {"file": target.name, "rows": rows, "bytes": temporary.stat().st_size, "sha256": sha256(temporary)}
            os.replace(temporary, target)
            write_record(target.with_name(f"{target.name}.json"), record)
        finally:
            temporary.unlink(missing_ok=True)

    def publish(self, identity: Mapping[str, Any], card: str) -> None:
        """Write down that the cache is complete, and what it is for whoever finds it."""
        records = [self.record(index) for index in range(self.count)]
        if None in records:
            raise RuntimeError(f"{self.path / self.name(records.index(None))} is not there, though all were written.")
        write_atomic(self.path / "README.md", card)
        write_record(self.path / CACHE, {**identity, "shards": records})


def _together(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Yield the same rows in larger tables."""
    import pyarrow as pa

    held: list[pa.Table] = []
    for table in tables:
        held.append(table)
        if sum(one.nbytes for one in held) >= _TOGETHER:
            yield pa.concat_tables(held)
            held = []
    if held:
        yield pa.concat_tables(held)


def overhead(features: Features, shards: int) -> int:
    """Return the bytes of a cache that hold no rows, nearly: what each shard says of its columns, and files beside."""
    import pyarrow as pa

    sink, schema = pa.BufferOutputStream(), features.arrow_schema
    with pa.ipc.new_stream(sink, schema) as stream:
        stream.write_batch(pa.RecordBatch.from_pylist([], schema))
    return _BESIDE + shards * (_RECORD + int(sink.tell()))


def claim(path: Path, plan: Mapping[str, Any], need_bytes: int) -> None:
    """Make a directory ready for a cache, or for going on with one.

    Raises:
        UserError: It cannot be written or has not enough room, or holds the beginning of another cache.
    """
    check_place(path, plan, need_bytes)
    if not _go_on(path, plan):
        write_record(path / PLAN, plan)


def check_place(path: Path, plan: Mapping[str, Any], need_bytes: int) -> None:
    """Refuse a directory that is not for this cache.

    Raises:
        UserError: As `claim` does.
    """
    if _go_on(path, plan):
        return
    try:
        check_writable(path, need_bytes)
    except UserError as error:
        raise UserError(*error.mistakes, key="path") from error
    if _go_on(path, plan):  # another run has begun it meanwhile, where no lock kept it from that
        return
    if not all(file.name == LOCK or file.match("_*.tmp") for file in path.iterdir()):
        raise UserError(f"{path} holds files that are no cache. Choose another path, or empty it.", key="path")


def _go_on(path: Path, plan: Mapping[str, Any]) -> bool:
    """Whether a directory holds the beginning of a cache to go on with; refuse that of another one."""
    held = read_plan(path)
    if held is None:
        return False
    _sweep(path)
    check_identity(path, held, plan)
    if held.get("examples") != plan["examples"]:
        raise UserError(
            f"{path} holds a cache of other examples ({_differences(held, plan)}). Choose another path, or remove it.",
            key="path",
        )
    return True


def _sweep(path: Path) -> None:
    """Remove what processes of this machine that are no more had begun to write."""
    for file in path.glob(f"_*.{socket.gethostname()}.*.tmp"):
        process = file.name.split(".")[-3]
        try:
            os.kill(int(process), 0)
        except ProcessLookupError:
            file.unlink(missing_ok=True)
        except (ValueError, OSError):  # another user's, then
            continue


def read_plan(path: Path) -> dict[str, Any] | None:
    """Return what a directory's cache is or is going to be; None where there is none."""
    return read_record(path / PLAN)


def read_cache(path: Path) -> dict[str, Any] | None:
    """Return what a directory's complete cache is; None where it is not complete."""
    return read_record(path / CACHE)


def check_identity(path: Path, held: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuse a cache of another teacher, or one that keeps something else of it.

    Raises:
        UserError: With what is different.
    """
    for part, words in _PARTS.items():
        mine, other = wanted.get(part), held.get(part)
        if mine == other:
            continue
        if part == "teacher":  # a fingerprint, which says nothing to a reader
            mine, other = wanted.get("weights"), held.get("weights")
        changes = _changes(other, mine) if isinstance(mine, dict) and isinstance(other, dict) else ""
        found = f" ({changes})" if changes else ""
        raise UserError(
            f"the cache at {path} is of {words}{found}. Choose another path; without one each combination of teacher, "
            "settings and data has its own.",
            key="path",
        )


def check_examples(path: Path, held: Mapping[str, Any], wanted: Mapping[str, Any], split: str, missing: Any) -> None:
    """Refuse a cache that lacks examples.

    Args:
        path: Of the cache.
        held: What it says of itself.
        wanted: What would have been captured here.
        split: Whose examples were looked up.
        missing: Bool for each example, whether it is not there.

    Raises:
        UserError: With how many, and what may be the reason.
    """
    if not missing.any():
        return
    raise UserError(
        f"the cache at {path} does not belong to this data: {missing.sum()} of {len(missing)} examples of the {split} "
        f"split are not in it, the first in row {missing.argmax()} ({_differences(held, wanted)}). Choose another "
        "path, or leave it out.",
        key="path",
    )


def _differences(held: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    changes = _changes(held.get("reading", {}), wanted.get("reading", {}))
    return f"different: {changes}" if changes else "read in the same way, so the data itself is another"


def _changes(held: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Return `max_length 64 there and 32 here, tokenizer` for two mappings; long values are fingerprints."""
    changed = []
    for key in sorted({*held, *wanted}):
        one, other = held.get(key), wanted.get(key)
        if one != other:
            words = max(len(str(one)), len(str(other))) < 30
            changed.append(f"{key} {one} there and {other} here" if words else key)
    return ", ".join(changed)


def verify(path: Path, held: Mapping[str, Any], shards: Sequence[int]) -> None:
    """Refuse shards that are not as they were written.

    Raises:
        UserError: With the name of the first.
    """
    for index in shards:
        record = held["shards"][index]
        file = path / record["file"]
        fault = None
        if not file.is_file():
            fault = "is missing"
        elif file.stat().st_size != record["bytes"]:
            fault = f"has {file.stat().st_size} bytes, and was written with {record['bytes']}"
        elif sha256(file) != record["sha256"]:
            fault = "was changed since it was written (its sha256 is another)"
        if fault:
            raise UserError(
                f"the cache is damaged: {file} {fault}. Remove this file: the same command then computes this shard "
                "again, and no other.",
                key="path",
            )


def load(path: Path, held: Mapping[str, Any]) -> Dataset:
    """Return the rows of a cache, memory-mapped."""
    from datasets import Dataset, concatenate_datasets

    return concatenate_datasets([Dataset.from_file(str(path / record["file"])) for record in held["shards"]])
