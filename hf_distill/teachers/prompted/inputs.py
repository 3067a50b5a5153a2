"""Make the inputs of a prompted language model: prompts of every row, what they share, and the verbalizers."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from hf_distill.data import column
from hf_distill.errors import UserError
from hf_distill.teachers.prompted.few_shot import classes_of_rows, draw, shares
from hf_distill.teachers.prompted.prompts import ANSWER, LABEL, Prompt, Values
from hf_distill.teachers.prompted.verbalizers import (
    END,
    PromptReader,
    Texts,
    Tokens,
    check_apart,
    check_labels,
    fit,
    shared_prefix,
)

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_distill.teachers.own_inputs import Examples

logger = logging.getLogger(__name__)

YES, NO = "yes", "no"
# What stands for a text without content: Zhao et al. 2021, section 5.
CONTENT_FREE = ("N/A", "[MASK]", "")
# How many train rows, evenly spaced, the mean prediction is taken over.
PRIOR_ROWS = 500
_BATCH = 1000


@dataclass(frozen=True)
class PromptInputs:
    """What a prompted teacher reads.

    Attributes:
        rows: Split -> for each row, the tokens after the prefix; of each label where labels are asked for one by one.
        prefixes: The tokens with which all prompts begin; of each label where they are asked for one by one.
        verbalizers: Tokens of the verbalizers: of each class, or of `yes` and `no`.
        opening: Tokens with which a decoder begins every verbalizer.
        calibration: Prompts whose predictions the calibration is made from, like `rows`; empty for none.
        prior: The class prior; with several labels, of each label.
        shown: Lines for `--check`: the first prompt, and how many tokens there are.
    """

    rows: Mapping[str, list[Any]]
    prefixes: list[list[int]]
    verbalizers: list[list[list[int]]]
    opening: list[int]
    calibration: list[Any] = field(default_factory=list)
    prior: list[float] = field(default_factory=list)
    shown: tuple[str, ...] = ()

    def settings(self) -> dict[str, Any]:
        """Return what decides the model's logits beside the rows, as plain values."""
        names = ("prefixes", "verbalizers", "opening", "calibration", "prior")
        return {name: getattr(self, name) for name in names}


class PromptSettings(Protocol):
    """What the teacher entry of a recipe says about its prompts."""

    @property
    def prompt(self) -> str | Sequence[Mapping[str, str]]:
        """The template, or messages of templates."""

    @property
    def texts(self) -> Texts:
        """Label -> its verbalizers."""

    @property
    def examples(self) -> int:
        """How many solved examples."""

    @property
    def seed(self) -> int:
        """Decides which."""

    @property
    def calibration(self) -> str:
        """`none`, `contextual` or `prior`."""

    @property
    def prior(self) -> str:
        """`uniform` or `labels`."""


def make_inputs(own: PromptSettings, examples: Examples, limit: int | None, *, encodes: bool) -> PromptInputs:
    """Return the inputs of all rows.

    Args:
        own: The teacher entry of the recipe.
        examples: The rows and their classes.
        limit: Most tokens of prompt and verbalizer; None for no limit.
        encodes: Whether the model is an encoder-decoder.

    Raises:
        UserError: Prompt, verbalizers or data do not fit each other; `key` is a key of the entry.
    """
    return _Making(own, examples, limit, encodes).inputs()


class _Making:
    """Makes the inputs of one run."""

    def __init__(self, own: PromptSettings, examples: Examples, limit: int | None, encodes: bool) -> None:
        assert examples.tokenizer is not None
        self.own, self.examples, self.tokenizer = own, examples, examples.tokenizer
        self.prompt = Prompt(own.prompt)
        self.prompt.check(self.tokenizer)
        self.reader = PromptReader(self.tokenizer, special=isinstance(own.prompt, str), encodes=encodes)
        self.texts: Texts = own.texts
        self.limit = limit
        self.shortened = 0
        self.ends: set[str] = set()
        self._check()
        # Several labels are asked for one by one.
        self.labels: tuple[str | None, ...] = examples.classes if examples.several else (None,)
        self.classes = classes_of_rows(examples.prepared, examples.classes, several=examples.several)
        self.solved = [self._solved(at) for at in range(len(self.labels))]

    def _check(self) -> None:
        several = self.examples.several
        if several and set(self.texts) != {YES, NO}:
            raise UserError(
                "a row can have several labels, so the prompt is asked once for each of them (named by {{ label }}). "
                "Wanted verbalizers: {yes: [...], no: [...]}.",
                key="verbalizers",
            )
        if not several:
            check_labels(self.texts, self.examples.classes)
        if several != (LABEL in self.prompt.names):
            raise UserError(
                "the prompt does not name the label that it asks for. Wanted {{ label }} in it."
                if several
                else "the prompt names the label, which is what it asks for. Take {{ label }} out.",
                key="prompt",
            )
        for name, split in self.examples.rows.items():
            self.prompt.check_columns([one for one in split.column_names if one != LABEL], name)
            for one in self.prompt.columns:
                self._check_column(split, one, name)

    def _check_column(self, split: Dataset, name: str, split_name: str) -> None:
        values = column(split, name)
        if values.null_count:
            raise UserError(
                f"the prompt names '{name}', and {values.null_count} of {len(split)} rows of the {split_name} split "
                "have no value in this column. Drop or fill these rows.",
                key="prompt",
            )
        if LABEL in split.column_names and values.equals(column(split, LABEL)):
            raise UserError(f"the prompt names '{name}', the column of the labels. Take it out.", key="prompt")

    # ---- Solved examples ----

    def _solved(self, at: int) -> list[Values]:
        """Return the solved examples that come before the question: for one label, where they are asked one by one."""
        own, train = self.own, self.examples.rows["train"]
        if not own.examples:
            return []
        classes, names = self.classes, self.examples.classes
        if self.examples.several:
            # 0 for yes and 1 for no, which are what is asked.
            classes, names = np.where(classes[:, at] < 0, -1, 1 - classes[:, at]), (YES, NO)
        chosen = draw(classes, own.examples, names, own.seed + at)
        return [
            {**self._values(train[row], self.labels[at]), ANSWER: self.texts[names[int(classes[row])]][0]}
            for row in chosen
        ]

    def _values(self, row: Mapping[str, Any], label: str | None) -> dict[str, Any]:
        values = {name: row[name] for name in self.prompt.columns}
        return values if label is None else {**values, LABEL: label}

    # ---- Prompts ----

    def inputs(self) -> PromptInputs:
        """Return the inputs of all rows."""
        tokens = {name: list(self._split(split)) for name, split in self.examples.rows.items()}
        calibration = list(self._calibrating())
        self.reader.check_ends(self.texts, self.verbalizers, self.ends)
        every = [*chain.from_iterable(tokens.values()), *calibration]
        apart = range(len(self.labels))
        prefixes = [[] if self.reader.encodes else shared_prefix(row[at] for row in every) for at in apart]
        if self.shortened:
            logger.warning(
                "%s prompts are longer than %s tokens: their texts are shortened at the end, and the rest of the "
                "prompt stays as it is",
                *(f"{self.shortened:,}", self.room),
            )

        def rest(row: Sequence[list[int]]) -> Any:
            parts = [ids[len(prefix) :] for ids, prefix in zip(row, prefixes, strict=True)]
            return parts if self.examples.several else parts[0]

        splits = {name: [rest(row) for row in rows] for name, rows in tokens.items()}
        lengths = np.array([len(ids) for row in every for ids in row])
        return PromptInputs(
            splits,
            prefixes,
            [self.verbalizers[name] for name in ((YES, NO) if self.examples.several else self.examples.classes)],
            self.reader.opening(self.texts),
            [rest(row) for row in calibration],
            self._prior(),
            tuple(self._shown(float(lengths.mean()), int(lengths.max()), sum(map(len, prefixes)) / len(prefixes))),
        )

    def _shown(self, mean: float, longest: int, shared: float) -> Iterator[str]:
        asked = f", {len(self.labels)} prompts a row" if self.examples.several else ""
        once = "an encoder reads all" if self.reader.encodes else f"the first {shared:.0f} are computed once for all"
        yield f"prompt      {mean:.0f} tokens on average, {longest} at most: {once}{asked}. That of the first row:"
        first = self._values(self.examples.rows["train"][0], self.labels[0])
        yield from (f"            | {line}" for line in self._text(first, 0).split("\n"))
        said = (f"{' or '.join(map(repr, some))} for {label}" for label, some in self.texts.items())
        yield f"            continued by {', '.join(said)}"

    @cached_property
    def verbalizers(self) -> Tokens:
        """The tokens of the verbalizers, as they follow the first prompt."""
        first = self._values(self.examples.rows["train"][0], self.labels[0])
        found = self.reader.verbalizers(self.texts, self._text(first, 0))
        check_apart(found, self.texts)
        return found

    @cached_property
    def room(self) -> int | None:
        """Most tokens of a prompt."""
        if self.limit is None or self.reader.encodes:
            return self.limit
        return self.limit - max(len(ids) for some in self.verbalizers.values() for ids in some)

    def _split(self, split: Dataset) -> Iterator[list[list[int]]]:
        """Yield the tokens of each row's prompts, one for each label that is asked for."""
        needed = split.select_columns([*self.prompt.columns])
        for start in range(0, len(needed), _BATCH):
            yield from self._tokens(list(needed.select(range(start, min(start + _BATCH, len(needed))))))

    def _tokens(self, rows: Sequence[Values]) -> Iterator[list[list[int]]]:
        by_label = []
        for at, label in enumerate(self.labels):
            values = [self._values(row, label) for row in rows]
            texts = [self._text(one, at) for one in values]
            self.ends.update(text[-END:] for text in texts)
            ids = self.reader.prompts(texts)
            by_label.append([self._fitting(one, given, at) for one, given in zip(ids, values, strict=True)])
        yield from map(list, zip(*by_label, strict=True))

    def _text(self, values: Values, at: int) -> str:
        return self.prompt.render(values, self.solved[at], self.tokenizer)

    def _fitting(self, ids: list[int], values: Values, at: int) -> list[int]:
        """Return the tokens of a prompt, its text shortened if it is too long."""
        if self.room is None or len(ids) <= self.room:
            return ids
        texts = {name: value for name, value in values.items() if isinstance(value, str) and name != LABEL}
        found = fit(texts, lambda some: self.reader.prompts([self._text({**values, **some}, at)])[0], self.room)
        if found is None:
            raise UserError(
                f"without the text of the row the prompt is still longer than the {max(self.room, 0)} tokens that the "
                "model takes beside the verbalizers. Shorten it, or take fewer examples.",
                key="prompt",
            )
        self.shortened += 1
        return found

    # ---- Calibration ----

    def _calibrating(self) -> Iterator[list[list[int]]]:
        """Yield the prompts whose predictions the calibration is made from."""
        train = self.examples.rows["train"].select_columns([*self.prompt.columns])
        if self.own.calibration == "contextual":
            first = train[0]
            texts = [name for name, value in first.items() if isinstance(value, str)]
            yield from self._tokens([{**first, **dict.fromkeys(texts, content)} for content in CONTENT_FREE])
        if self.own.calibration == "prior":
            count = min(PRIOR_ROWS, len(train))
            yield from self._split(train.select(np.linspace(0, len(train) - 1, count).round().astype(int)))

    def _prior(self) -> list[float]:
        names = self.examples.classes
        if self.own.calibration != "prior":
            return []
        if self.own.prior == "uniform":
            return [1 / 2 if self.examples.several else 1 / len(names)] * len(names)
        if not self.examples.several:
            return shares(self.classes, names)
        return [shares(column, (f"not {name}", name))[1] for name, column in zip(names, self.classes.T, strict=True)]
