"""Texts that are read in order and tokenised on the way (`datasets.IterableDataset`), by the code of the task."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import datasets
from torch.utils.data import IterableDataset, get_worker_info
from torch.utils.data._utils import worker

from hf_distill.errors import UserError
from hf_distill.models.patching import replaced
from hf_distill.objectives.logits import Labels

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from hf_distill.objectives import Objective
    from hf_distill.tasks import Prepared
    from hf_distill.training.text_columns import TextColumns

# Rows at the beginning of a stream by which columns, labels and settings are checked.
FIRST = 1_000
# Rows that are tokenised at once.
_CHUNK = 500


def is_stream(split: Any) -> bool:
    """Return whether a split is read in order, and has no length."""
    return isinstance(split, IterableDataset | datasets.IterableDataset)


def first_rows(split: Any) -> Any:
    """Return the first rows of a stream as a data set; any other split as it is. The stream is not used up by it.

    Raises:
        UserError: The stream has no rows.
    """
    if not isinstance(split, datasets.IterableDataset):
        return split
    rows = list(islice(iter(split), FIRST))
    if not rows:
        raise UserError("the stream has no rows: no example to train or evaluate on.")
    return datasets.Dataset.from_list(rows, features=split.features)


def collected(split: Any) -> Any:
    """Return all rows of a stream to evaluate on as a data set, or each of a dict; any other split as it is.

    Predictions of all rows are in memory at the end in any case, and rows that processes repeat are found by length.
    """
    if isinstance(split, dict):
        return {name: collected(one) for name, one in split.items()}
    if not isinstance(split, datasets.IterableDataset):
        return split
    return datasets.Dataset.from_list(list(split), features=split.features)


class TextStream(IterableDataset[dict[str, Any]]):
    """A stream of texts as tokenised examples, in the order of its rows, without end.

    After the last row it begins again, with the next epoch set (`shuffle` then draws another order). One endless pass
    means that a resumed training finds its place by counting examples, however often the stream was read.

    Args:
        raw: The rows.
        texts: Tokenises; made with the first rows of the stream as its train split.

    Attributes:
        first: The first rows, tokenised: what can be checked before the first step.
    """

    def __init__(self, raw: datasets.IterableDataset, texts: TextColumns) -> None:
        self._raw, self._texts = raw, texts
        self.first: datasets.Dataset = texts.prepared.train
        self._features = texts.train.features
        self._pinned = _pinned(texts)
        self._anchor, self._anchored = self._find_anchor()

    @property
    def column_names(self) -> list[str]:
        """Names of the tokenised columns."""
        names: list[str] = self.first.column_names
        return names

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield examples without end.

        Raises:
            UserError: A row cannot be read as the task reads it; the message has its number.
        """
        info = get_worker_info()
        assert info is None or info.num_workers == 1, "several workers would yield each row several times"
        epoch = 0
        while True:
            self._raw.set_epoch(epoch)
            empty = True
            for start, rows in _chunks(iter(self._raw), _CHUNK):
                for example in self._tokenised(rows, start):
                    empty = False
                    yield example
            if empty:
                raise UserError("the stream has no rows: no example to train on.")
            epoch += 1

    def _tokenised(self, rows: list[dict[str, Any]], start: int) -> datasets.Dataset:
        try:
            return self._prepare(rows)
        except (UserError, ValueError, TypeError) as error:
            raise self._located(rows, start, error) from error

    def _prepare(self, rows: list[dict[str, Any]]) -> datasets.Dataset:
        """Return the examples of some rows.

        A row that is known to be good stands after them, so that a split that has nothing else is not a mistake.
        """
        made = self._of([*rows, *self._anchor])
        known, found = self._texts.prepared, made.train.select(range(len(made.train) - self._anchored))
        if made.head.settings != self._known_head:
            raise UserError(
                f"labels of another kind than those of the first {len(known.train):,} rows of the stream, which "
                "decide what the labels are."
            )
        return found

    @property
    def _known_head(self) -> Mapping[str, Any]:
        return self._of_anchor.head.settings

    def _of(self, rows: Sequence[Mapping[str, Any]]) -> Prepared:
        split = datasets.Dataset.from_list(list(rows), features=self._features)
        with _quiet():
            return self._texts.prepare_as(split, self._anchor_split, self._pinned)

    def _find_anchor(self) -> tuple[list[dict[str, Any]], int]:
        """Return the first row from which something is learned, and how many examples it makes."""
        reason: Exception | None = None
        for row in range(len(self._texts.train)):
            self._anchor_split = self._texts.train.select([row])
            try:
                self._of_anchor = self._of([self._texts.train[row]])
            except UserError as error:
                reason = reason or error
                continue
            if len(self._of_anchor.train):
                return [self._texts.train[row]], len(self._of_anchor.train)
        raise reason or UserError("nothing can be learned from the first rows of the stream.")

    def _located(self, rows: Sequence[dict[str, Any]], start: int, error: Exception) -> UserError:
        """Return the mistake with the number of its row, found by preparing the rows one by one."""
        for place, row in enumerate(rows):
            try:
                self._prepare([row])
            except (UserError, ValueError, TypeError) as one:
                text = " ".join(str(one).split())
                for said in ("row 0 (counted from 0)", "row 0 "):
                    text = text.replace(said, said.replace("0", f"{start + place:,}", 1))
                return UserError(f"row {start + place:,} of the stream, counted from 0: {text}")
        last = start + len(rows) - 1
        return UserError(f"rows {start:,} to {last:,} of the stream: {' '.join(str(error).split())}")


def _pinned(texts: TextColumns) -> Any:
    """Return the setup with the labels of the first rows: later rows must not add classes or change their order."""
    settings, setup = texts.prepared.head.settings, texts.setup
    known = setup.student or next(iter(setup.configs), None)
    if "id2label" not in settings or known is None:
        return setup
    config = deepcopy(known)
    config.update(settings)
    return replace(setup, teacher=None, student=config)


def _chunks(rows: Iterator[dict[str, Any]], size: int) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    start = 0
    while chunk := _read(rows, size):
        yield start, chunk
        start += len(chunk)


def _read(rows: Iterator[dict[str, Any]], number: int) -> list[dict[str, Any]]:
    """Return the next rows, in the order that they have in the training's own process.

    In a worker of a data loader, `datasets` shuffles in another order, even if there is only one worker.
    """
    with replaced(worker, "_worker_info", None):
        return list(islice(rows, number))


@contextmanager
def _quiet() -> Iterator[None]:
    """Context manager: no progress bar and no remarks for each few rows; those on the first ones were shown."""
    shown, log = not datasets.are_progress_bars_disabled(), logging.getLogger("hf_distill")
    level = log.level
    datasets.disable_progress_bars()
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
        if shown:
            datasets.enable_progress_bars()


def check_stream(split: Any, args: TrainingArguments) -> None:
    """Refuse training arguments that a train split without a length does not go with.

    Raises:
        UserError: There is no number of steps, or a length or order of the rows is asked for.
    """
    if not is_stream(split):
        return
    if args.max_steps <= 0:
        raise UserError(
            "train_dataset is a stream, which has no length, so that num_train_epochs is no number of steps. Set "
            "max_steps.",
            key="max_steps",
        )
    sampling = str(getattr(args.train_sampling_strategy, "value", args.train_sampling_strategy))
    if sampling in ("group_by_length", "batch_rebalance"):
        raise UserError(
            f"train_sampling_strategy: {sampling} needs the lengths of all rows, and a stream is read in order. Leave "
            "it out; max_tokens_per_batch and padding_free save padding too.",
            key="train_sampling_strategy",
        )


def check_stream_features(task: Any, objectives: Sequence[Objective], stored: Any, config: Any) -> None:
    """Refuse what needs all rows of a train split before the first step; called for streams of text alone.

    Args:
        task: The task that tokenises.
        objectives: The objectives.
        stored: The entry of a teacher whose targets are stored; None if they are not.
        config: accelerate's settings of data loaders.

    Raises:
        UserError: See above; the message says what works instead.
    """
    if getattr(task, "packing", False):
        raise UserError(
            "packing joins texts to blocks, and a stream is tokenised a few rows at a time. Use padding_free: true, "
            "which computes no padding either."
        )
    if stored is not None:
        raise UserError(
            "a cached teacher stores its targets for rows that it finds again, and train_dataset is a stream. Pass the "
            "teacher itself, or the rows as a datasets.Dataset."
        )
    if getattr(config, "dispatch_batches", None):
        raise UserError(
            "dispatch_batches sends parts of one batch to all processes, and batches of texts differ in width. Leave "
            "it out: each process then reads the stream and takes its own rows."
        )
    for one in objectives:
        if one.group_weights == "worst_group" or one.group_weights == "inverse_frequency":
            raise UserError(
                f"group_weights: {one.group_weights} needs the groups of all rows, and train_dataset is a stream. Give "
                "the weights by group: {group: weight}.",
                key="group_weights",
            )
        if isinstance(one, Labels) and one.class_weights == "balanced":
            raise UserError(
                "'balanced' counts the labels of all rows, and train_dataset is a stream. Give the weights as a list.",
                key="class_weights",
            )


def in_worker(read: Callable[[], Any]) -> Any:
    """Return what `read` returns; a `UserError` of a data loader's worker is raised as in this process: one line."""
    try:
        return read()
    except UserError as error:
        *_, line = str(error).split("UserError: ")
        if "DataLoader worker" in str(error):
            raise UserError(line) from None
        raise
