"""Running a teacher once over the data, and keeping its answers for every training that follows."""

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
from hf_distill.models.fingerprint import model_fingerprint
from hf_distill.models.quantization import is_placed, weights

if TYPE_CHECKING:
    import pyarrow as pa  # type: ignore[import-untyped]
    from datasets import Features
    from transformers import PreTrainedModel, TrainingArguments

    from hf_distill.tasks import Prepared

# Beside what `datasets` keeps, so that HF_HOME and HF_DATASETS_CACHE move it too.
FOLDER = "hf_distill-targets"
# A shard is what is lost when a capture is killed: minutes of a large teacher's time.
SHARD_BYTES = 64 * 2**20
SHARD_EXAMPLES = 8192


def no_words(_: str) -> None:
    """Say nothing."""


@dataclass
class Cache:
    """The answers of one teacher to all examples of a run.

    Attributes:
        data: As the teacher reads it.
        teacher: The model.
        kept: What is kept of its answers.
        reading: What decides how texts become tokens, for a refusal that says what is different.
        path: Directory; a fingerprint of everything is added to it unless it is `exact`.
        exact: Whether the cache is to be exactly there.
        complete: Whether it is to be there already, and nothing is to be written.
        say: Tells the user what goes on.
        contents: The examples.
        found: Whether all answers were there when it was to be filled.
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
        """Look at the data."""
        self.contents = Contents.of(self.data, self.kept)
        self.identity: dict[str, Any] = {
            "format": files.FORMAT,
            "teacher": model_fingerprint(self.teacher),
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
        """Bytes of all files, nearly."""
        shards = self._shards({"shard_examples": self._shard_examples()}).count
        return self._rows_size() + files.overhead(self._features(), shards)

    def in_words(self) -> str:
        """Return what is or will be kept, and how much that is."""
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
        """Have the teacher answer what it has not answered yet; several processes share the work.

        Args:
            args: Device, precision, batch size and processes.

        Raises:
            UserError: The directory holds another cache, or cannot hold this one.
            NotFinite: The teacher gives targets that are NaN or infinite, or the cache holds some.
            OSError: The disk is full; finished shards stay.
        """
        # Once for all: another run may complete it meanwhile.
        self.found = parallel.asked_once(lambda: self.complete or self._is_complete())
        with Lock(self.path) as lock:
            if not self.found:
                plan = {**self.identity, "shard_examples": self._shard_examples(), "bf16": args.bf16}
                parallel.asked_once(lambda: files.check_place(self.path, plan, self.size))
                lock.wait(self.say, "fills the cache")
                self.found = parallel.asked_once(self._is_complete)  # by that run
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
        held = self._held()
        if held.get("bf16", args.bf16) != args.bf16:
            there, here = ("bfloat16", "float32") if held["bf16"] else ("float32", "bfloat16")
            self.say(f"these answers were computed in {there}, where this run's teacher would compute in {here}")
        mine = parallel.share_of(len(held["shards"]))

        def look() -> None:
            files.verify(self.path, held, mine)
            check_shards(self.path, held, self.kept, self.data.layout.has_classes, mine)

        parallel.together(look)

    def apply(self, prepared: Data) -> tuple[Data, Replay]:
        """Return what a student trains on: the data with the answers in every batch, and a teacher that gives them.

        Args:
            prepared: As the student reads it, row by row the same examples.

        Raises:
            UserError: The cache is of another teacher or of other examples.
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

    def _held(self) -> dict[str, Any]:
        held = files.read_cache(self.path)
        if held is None:
            raise UserError(f"{self.path} holds no complete cache.", key="path")
        files.check_identity(self.path, held, self.identity)
        return held

    def _is_complete(self) -> bool:
        if files.read_cache(self.path) is None:
            return False
        held = self._held()
        # A shard that somebody removed is to be made again; one that was changed is refused, see `verify`.
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
            self.say(f"{shards.count - len(missing)} of {shards.count} shards are there, {len(missing)} are missing")
        # By number, not by place among the missing ones: another process may have written one since.
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
            if shards.finished(index):  # by another run, which shares the directory
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

        from hf_distill.models.inspection import taken_by

        schema = features.arrow_schema
        takes = taken_by(recorder.teacher)
        places = range(start, min(stop, len(self.contents.order)))
        size = args.per_device_eval_batch_size
        parts = [places[first : first + size] for first in range(0, len(places), size)]
        collated: Any = _Batches(self.contents, recorder.padding.collating(self.data.collator), parts)
        batches: Any = DataLoader(collated, batch_size=None, num_workers=args.dataloader_num_workers)
        for part, batch in zip(parts, batches, strict=True):
            batch = {key: value.to(args.device) for key, value in batch.items()}
            inputs = {key: value for key, value in batch.items() if key in takes}
            if "use_cache" in takes:
                inputs["use_cache"] = False
            columns = recorder(batch, inputs, int(self.contents.known[part[0], 0] >> 1))
            names = ("row {1} of the {0} split".format(*self.contents.order[index]) for index in part)
            check_recorded(columns, self.kept, self.data.layout.has_classes, list(names))
            hashes = [self.contents.known[index].tobytes() for index in part]
            arrays = [pa.array(hashes, schema.field("example").type)]
            arrays += [_arrow(columns[name], schema.field(name).type) for name in self.kept.names]
            yield pa.Table.from_arrays(arrays, schema=schema)


@dataclass(frozen=True)
class _Batches:
    """Collated batches of examples, for a data loader."""

    contents: Contents
    collator: Callable[[list[dict[str, Any]]], Mapping[str, Any]]
    parts: Sequence[range]

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        examples = []
        for place in self.parts[index]:
            name, row = self.contents.order[place]
            example = self.contents.splits[name][row]
            examples.append({key: value for key, value in example.items() if key not in NOT_READ})
        return dict(self.collator(examples))


def _arrow(values: Sequence[Any], kind: Any) -> Any:
    import pyarrow as pa

    if pa.types.is_list(kind) and pa.types.is_fixed_size_list(kind.value_type):
        return to_arrow(values, kind)
    return pa.array([value if isinstance(value, bytes) else value.tolist() for value in values], kind)


def amount(size: int) -> str:
    """Return `3.1 MB` for a number of bytes."""
    for unit, step in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= step:
            return f"{size / step:.1f} {unit}"
    return f"{size} bytes"


def default_root() -> Path:
    """Return where caches lie that a recipe gives no place."""
    from datasets import config

    return Path(config.HF_DATASETS_CACHE) / FOLDER
