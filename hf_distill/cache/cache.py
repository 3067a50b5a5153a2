"""Run a teacher once over the data and store its targets for every later training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_distill import parallel
from hf_distill.cache import shards as files
from hf_distill.cache.example_hashes import NOT_READ, Contents, find
from hf_distill.cache.finite import check_recorded, check_shards
from hf_distill.cache.format import Kept
from hf_distill.cache.hidden_states import in_words, to_arrow
from hf_distill.cache.hub import card
from hf_distill.cache.recorder import Recorder
from hf_distill.cache.replay import CachedTargets, Data, Replay, TrainingData, with_targets
from hf_distill.errors import UserError
from hf_distill.files.fingerprint import fingerprint
from hf_distill.files.lock import Lock
from hf_distill.files.shared import check_shared
from hf_distill.models.quantization import is_placed, weights
from hf_distill.models.target_model import as_source

if TYPE_CHECKING:
    import pyarrow as pa  # type: ignore[import-untyped]
    from datasets import Features
    from transformers import PreTrainedModel, TrainingArguments

    from hf_distill.tasks import Prepared

# Folder inside the cache of `datasets`, so that HF_HOME and HF_DATASETS_CACHE apply to it too.
FOLDER = "hf_distill-targets"
# Size limits of a shard. If a run is killed, it loses the shard that it was writing: minutes of a large teacher's time.
SHARD_BYTES = 64 * 2**20
SHARD_EXAMPLES = 8192


def no_words(_: str) -> None:
    """Print nothing; the default of `Cache.say`."""


@dataclass
class Cache:
    """The stored targets of one teacher for all examples of a run.

    Attributes:
        data: The data with the teacher's tokens.
        teacher: The model, or the source of targets that runs several.
        kept: What is stored of its outputs.
        reading: Settings of tokenisation; error messages use them to say what is different.
        path: Directory of the cache. Unless `exact`, a folder named by a fingerprint is added to it.
        exact: Whether `path` is the directory itself.
        complete: Whether the cache must exist already, so that nothing is written.
        say: Called with each line for the user.
        contents: The distinct examples.
        found: Whether all targets were stored already when `fill` was called.
    """

    data: Prepared | TrainingData
    teacher: PreTrainedModel
    kept: Kept
    reading: Mapping[str, Any]
    path: Path
    exact: bool = True
    say: Callable[[str], None] = no_words
    complete: bool = False
    contents: Contents = field(init=False)
    found: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        """Hash the examples, and compute the identity and the key of the cache."""
        self.contents = Contents.of(self.data, self.kept)
        source = as_source(self.teacher)
        assert source is not None
        self.identity: dict[str, Any] = {
            "format": files.FORMAT,
            "teacher": source.fingerprint(),
            "weights": weights(self.teacher),
            "kept": self.kept.as_dict(),
            "reading": dict(self.reading),
            "examples": self.contents.key,
        }
        self.key = fingerprint(self.identity["teacher"], self.identity["kept"], self.identity["examples"])
        if not self.exact:
            self.path = self.path / self.key

    @property
    def size(self) -> int:
        """Size of all files in bytes, approximately."""
        shards = self._shards({"shard_examples": self._shard_examples()}).count
        return self._rows_size() + files.overhead(self._features(), shards)

    def in_words(self) -> str:
        """Return a description of what is stored, with its size."""
        examples = len(self.contents.order)
        every = sum(map(len, self.contents.splits.values()))
        words = f"{examples:,} examples"
        if examples < every:
            words += f" (of {every:,}; the others are equal to one of these)"
        if self.kept.is_sparse:
            words += f", {self.kept.in_words()} at {self.contents.counts.sum():,} positions"
            words += f" ({self.kept.row_bytes()} bytes each)"
        if self.kept.states:
            words += f", {in_words(self.kept.states)}"
        return f"{words}: about {amount(self.size)}"

    def fill(self, args: TrainingArguments) -> None:
        """Run the teacher on the examples whose targets are not stored yet; several processes share the work.

        Args:
            args: Device, precision, batch size and processes.

        Raises:
            UserError: The directory holds another cache, cannot be written, or has too little room.
            NotFinite: The teacher's targets or the stored ones are NaN or infinite.
            OSError: The disk is full; finished shards stay.
        """
        # One process decides for all, because another run may complete the cache meanwhile.
        self.found = parallel.asked_once(lambda: self.complete or self._is_complete())
        with Lock(self.path) as lock:
            if not self.found:
                plan = {**self.identity, "shard_examples": self._shard_examples(), "bf16": args.bf16}
                parallel.asked_once(lambda: files.check_place(self.path, plan, self.size))
                check_shared(self.path, "path")
                lock.wait(self.say, "fills the cache")
                self.found = parallel.asked_once(self._is_complete)  # the run that held the lock may have filled it
            self.say(f"{'Found: ' if self.found else ''}{self.in_words()}, in {self.path}")
            if self.complete:
                self._held()
            elif not self.found:
                parallel.asked_once(lambda: files.claim(self.path, plan, self.size))
                parallel.together(partial(self._capture, args))
                parallel.wait()
                if parallel.is_first():
                    held = files.read_plan(self.path) or {}
                    self._shards(held).publish(held, card(self.kept))
            parallel.wait()
        parallel.together(self._check_held)
        held = self._held()
        if held.get("bf16", args.bf16) != args.bf16:
            there, here = ("bfloat16", "float32") if held["bf16"] else ("float32", "bfloat16")
            self.say(f"these targets were computed in {there}; this run's teacher would compute them in {here}")
        mine = parallel.share_of(len(held["shards"]))

        def look() -> None:
            files.verify(self.path, held, mine)
            check_shards(self.path, held, self.kept, self.data.layout.has_classes, mine)

        parallel.together(look)

    def apply(self, prepared: Data) -> tuple[Data, Replay]:
        """Return the data with the stored targets in every batch, and the teacher that reads them from there.

        Args:
            prepared: The data with the student's tokens; row by row the same examples.

        Raises:
            UserError: The cache belongs to another teacher or to other examples.
        """
        held = self._held()
        data = files.load(self.path, held)
        known = np.frombuffer(b"".join(data.with_format("arrow")["example"][:].to_pylist()), np.uint64).reshape(-1, 2)
        rows = {}
        for name, hashes in self.contents.hashes.items():
            rows[name] = find(known, hashes)
            files.check_examples(self.path, held, self.identity, name, rows[name] < 0)
        targets = CachedTargets(data, self.kept, prepared.layout)
        replay = Replay(self.teacher.config, self.kept, self.key)
        return with_targets(prepared, targets, rows), replay

    def _check_held(self) -> None:
        self._held()

    def _held(self) -> dict[str, Any]:
        held = files.read_cache(self.path)
        if held is None:
            where = "" if parallel.is_first() else f" of {parallel.here()}"
            raise UserError(f"{self.path}{where} holds no complete cache.", key="path")
        files.check_identity(self.path, held, self.identity)
        return held

    def _is_complete(self) -> bool:
        if files.read_cache(self.path) is None:
            return False
        held = self._held()
        # A shard that was removed is computed again; one that was changed is refused by `shards.verify`.
        return all((self.path / record["file"]).exists() for record in held["shards"])

    # ---- Capturing ----

    def _rows_size(self) -> int:
        return self.contents.size(self.kept, self.teacher.config)

    def _features(self) -> Features:
        return self.kept.features(self.contents.dims(self.kept))

    def _shard_examples(self) -> int:
        examples = max(1, len(self.contents.order))
        return max(1, min(SHARD_EXAMPLES, int(SHARD_BYTES / max(1, self._rows_size() / examples))))

    def _shards(self, plan: Mapping[str, Any]) -> files.Shards:
        return files.Shards(self.path, -(-len(self.contents.order) // plan["shard_examples"]))

    def _capture(self, args: TrainingArguments) -> None:
        plan = files.read_plan(self.path)
        assert plan is not None
        size, shards = plan["shard_examples"], self._shards(plan)
        missing = [index for index in range(shards.count) if not shards.finished(index)]
        share = parallel.share_of(shards.count)
        if missing and len(missing) < shards.count:
            self.say(f"{shards.count - len(missing)} of {shards.count} shards are stored, {len(missing)} are missing")
        # Shared by the numbers of shards, not by positions in `missing`, which differs between processes as soon as one
        # of them has written a shard.
        mine = [index for index in missing if index in share]
        if not mine:
            return
        teacher: Any = self.teacher
        teacher.eval().requires_grad_(False)
        fixed = is_placed(teacher, args.device)
        before = teacher.device
        if not fixed:
            teacher.to(args.device)
        recorder = Recorder(teacher, self.data.layout, self.kept, bf16=args.bf16)
        features = self._features()
        for done, index in enumerate(mine):
            if shards.finished(index):  # another run with the same directory has written it
                continue
            own = f" ({done} of {len(mine)} done by this process)" if len(share) < shards.count else ""
            self.say(f"shard {index + 1} of {shards.count}{own}")
            shards.write(index, self._tables(recorder, args, index * size, (index + 1) * size, features), features)
        if not fixed:
            teacher.to(before)

    def _tables(
        self, recorder: Recorder, args: TrainingArguments, start: int, stop: int, features: Any
    ) -> Iterator[pa.Table]:
        import pyarrow as pa
        from torch.utils.data import DataLoader

        schema = features.arrow_schema
        places, size = range(start, min(stop, len(self.contents.order))), args.per_device_eval_batch_size
        # No batch of both splits: the examples of one may be pairs of texts, and those of the other single ones.
        splits = [[place for place in places if self.contents.order[place][0] == name] for name in self.contents.splits]
        parts = [split[first : first + size] for split in splits for first in range(0, len(split), size)]
        collated: Any = _Batches(self.contents, recorder.padding.collating(self.data.collator), parts)
        batches: Any = DataLoader(collated, batch_size=None, num_workers=args.dataloader_num_workers)
        for part, batch in zip(parts, batches, strict=True):
            batch = {key: value.to(args.device) for key, value in batch.items()}
            columns = recorder(batch, int(self.contents.known[part[0], 0] >> 1))
            names = ("row {1} of the {0} split".format(*self.contents.order[index]) for index in part)
            check_recorded(columns, self.kept, self.data.layout.has_classes, list(names))
            hashes = [self.contents.known[index].tobytes() for index in part]
            arrays = [pa.array(hashes, schema.field("example").type)]
            arrays += [_arrow(columns[name], schema.field(name).type) for name in self.kept.names]
            yield pa.Table.from_arrays(arrays, schema=schema)


@dataclass(frozen=True)
class _Batches:
    """Collated batches of examples, as a map-style data set for a data loader."""

    contents: Contents
    collator: Callable[[list[dict[str, Any]]], Mapping[str, Any]]
    parts: Sequence[Sequence[int]]

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        places = (self.contents.order[place] for place in self.parts[index])
        examples = [self.contents.splits[name][row] for name, row in places]
        # Only one of the splits may have labels.
        shared = set(examples[0]).intersection(*examples[1:]).difference(NOT_READ)
        return dict(self.collator([{key: one[key] for key in one if key in shared} for one in examples]))


def _arrow(values: Sequence[Any], kind: Any) -> Any:
    import pyarrow as pa

    if pa.types.is_list(kind) and pa.types.is_fixed_size_list(kind.value_type):
        return to_arrow(values, kind)
    return pa.array([value if isinstance(value, bytes) else value.tolist() for value in values], kind)


def amount(size: int) -> str:
    """Return a number of bytes with its unit, such as `3.1 MB`."""
    for unit, step in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= step:
            return f"{size / step:.1f} {unit}"
    return f"{size} bytes"


def default_root() -> Path:
    """Return the folder of caches for which a recipe sets no path."""
    from datasets import config

    return Path(config.HF_DATASETS_CACHE) / FOLDER
