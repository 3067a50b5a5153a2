"""The files of a cache: the shards of a `datasets` data set, and the records that describe them.

A shard gets its name only when it is complete, with its size and checksum in a file beside it. `cache.json` is written
when every shard is there. A process that is killed leaves complete shards, and files that are never read as shards.
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
# Written first: the identity of the cache, and the size of its shards.
PLAN = "plan.json"
# Written last: the same, with the shards and their checksums.
CACHE = "cache.json"
# Bytes of rows that are written together. Each write adds some hundred bytes, as much as the logits of a small head.
_TOGETHER = 2**20
# Approximate bytes of the other files: once for a cache, and for each shard.
_BESIDE, _RECORD = 1200, 400

# Part of the identity that must agree -> words of the error message.
_PARTS = {
    "format": "another version of this package",
    "teacher": "another teacher",
    "kept": "other settings",
}


@dataclass(frozen=True)
class Shards:
    """The shards in a directory.

    Attributes:
        path: The directory.
        count: Number of shards of the complete cache.
    """

    path: Path
    count: int

    def name(self, index: int) -> str:
        """Return the file name of a shard."""
        return f"targets-{index:05d}-of-{self.count:05d}.arrow"

    def finished(self, index: int) -> bool:
        """Whether a shard exists with the recorded size."""
        record, file = self.record(index), self.path / self.name(index)
        return record is not None and file.is_file() and file.stat().st_size == record["bytes"]

    def record(self, index: int) -> dict[str, Any] | None:
        """Return the record of a shard (file, rows, bytes, checksum); None if it is not written yet."""
        return read_record(self.path / f"{self.name(index)}.json")

    def write(self, index: int, tables: Iterable[pa.Table], features: Features) -> None:
        """Write a shard completely or not at all; not if another run has written it meanwhile.

        Raises:
            OSError: The disk is full; the incomplete file is removed.
        """
        from datasets.arrow_writer import ArrowWriter

        target = self.path / self.name(index)
        # The random token is for containers, which may share a directory, a host name and process number 1.
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
            if self.finished(index):  # another run has written it, and `cache.json` may have its checksum
                return
            record = {"file": target.name, "rows": rows, "bytes": temporary.stat().st_size, "sha256": sha256(temporary)}
            os.replace(temporary, target)
            write_record(target.with_name(f"{target.name}.json"), record)
        finally:
            temporary.unlink(missing_ok=True)

    def publish(self, identity: Mapping[str, Any], card: str) -> None:
        """Mark the cache as complete: write its README and `cache.json`."""
        records = [self.record(index) for index in range(self.count)]
        if None in records:
            raise RuntimeError(
                f"{self.path / self.name(records.index(None))} is missing, though all shards were written."
            )
        write_atomic(self.path / "README.md", card)
        write_record(self.path / CACHE, {**identity, "shards": records})


def _together(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Yield the same rows in larger tables, of about `_TOGETHER` bytes."""
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
    """Return the approximate bytes of a cache besides its rows: the headers of the shards, and the other files."""
    import pyarrow as pa

    sink, schema = pa.BufferOutputStream(), features.arrow_schema
    with pa.ipc.new_stream(sink, schema) as stream:
        stream.write_batch(pa.RecordBatch.from_pylist([], schema))
    return _BESIDE + shards * (_RECORD + int(sink.tell()))


def claim(path: Path, plan: Mapping[str, Any], need_bytes: int) -> None:
    """Prepare a directory for a new cache, or for continuing an incomplete one.

    Raises:
        UserError: It cannot be written, has too little room, or holds another cache.
    """
    check_place(path, plan, need_bytes)
    if not _go_on(path, plan):
        write_record(path / PLAN, plan)


def check_place(path: Path, plan: Mapping[str, Any], need_bytes: int) -> None:
    """Refuse a directory that cannot be used for this cache.

    Raises:
        UserError: It cannot be written, has too little room, or holds another cache or other files.
    """
    if _go_on(path, plan):
        return
    try:
        check_writable(path, need_bytes)
    except UserError as error:
        raise UserError(*error.mistakes, key="path") from error
    if _go_on(path, plan):  # without locks, another run may have started this cache meanwhile
        return
    if not all(file.name == LOCK or file.match("_*.tmp") for file in path.iterdir()):
        raise UserError(f"{path} holds files that are not a cache. Choose another path, or empty it.", key="path")


def _go_on(path: Path, plan: Mapping[str, Any]) -> bool:
    """Whether a directory holds an incomplete or complete cache with this plan; refuse one with another plan."""
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
    """Remove incomplete files of processes of this machine that have ended."""
    for file in path.glob(f"_*.{socket.gethostname()}.*.tmp"):
        process = file.name.split(".")[-3]
        try:
            os.kill(int(process), 0)
        except ProcessLookupError:
            file.unlink(missing_ok=True)
        except (ValueError, OSError):  # a process of another user
            continue


def read_plan(path: Path) -> dict[str, Any] | None:
    """Return the plan of a directory's cache, complete or not; None without a cache."""
    return read_record(path / PLAN)


def read_cache(path: Path) -> dict[str, Any] | None:
    """Return the `cache.json` of a directory's complete cache; None if there is none.

    Raises:
        UserError: Its shards are not named as this package names them: names from elsewhere may lead anywhere.
    """
    held = read_record(path / CACHE)
    if held is None:
        return None
    shards = held.get("shards")
    named = Shards(path, len(shards)) if isinstance(shards, list) else None
    if named is None or not all(_is_record(one, named.name(index)) for index, one in enumerate(shards or ())):
        raise UserError(
            f"the cache at {path} is damaged: {CACHE} does not list its shards as this package writes them. Remove it.",
            key="path",
        )
    return held


def _is_record(found: Any, name: str) -> bool:
    return isinstance(found, dict) and found.get("file") == name and {"rows", "bytes", "sha256"} <= found.keys()


def check_identity(path: Path, held: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuse a cache of another teacher, with other settings, or of another format.

    Raises:
        UserError: The cache differs; the message says in what.
    """
    for part, words in _PARTS.items():
        mine, other = wanted.get(part), held.get(part)
        if mine == other:
            continue
        if part == "teacher":  # a fingerprint, which tells a reader nothing
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
        path: Directory of the cache.
        held: Content of its `cache.json`.
        wanted: Identity of the cache that this run needs.
        split: Name of the split.
        missing: Whether each example is missing, bool `(examples,)`.

    Raises:
        UserError: Examples are missing; the message has their number and the probable reason.
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
    return f"different: {changes}" if changes else "read in the same way, so the data itself is different"


def _changes(held: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Return the differences of two mappings, such as `max_length 64 there and 32 here, tokenizer`.

    Long values are fingerprints: only their key is named.
    """
    changed = []
    for key in sorted({*held, *wanted}):
        one, other = held.get(key), wanted.get(key)
        if one != other:
            words = max(len(str(one)), len(str(other))) < 30
            changed.append(f"{key} {one} there and {other} here" if words else key)
    return ", ".join(changed)


def verify(path: Path, held: Mapping[str, Any], shards: Sequence[int]) -> None:
    """Refuse shards that are missing or were changed.

    Raises:
        UserError: A shard differs from its record; the message names the first one.
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
            fault = "was changed since it was written (its sha256 is different)"
        if fault:
            raise UserError(
                f"the cache is damaged: {file} {fault}. Remove this file, and the same command computes only this "
                "shard again.",
                key="path",
            )


def load(path: Path, held: Mapping[str, Any]) -> Dataset:
    """Return the rows of a cache, memory-mapped."""
    from datasets import Dataset, concatenate_datasets

    return concatenate_datasets([Dataset.from_file(str(path / record["file"])) for record in held["shards"]])
