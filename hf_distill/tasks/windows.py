"""Cut questions with long contexts into windows that fit a model, and find the answer's positions in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_distill.data.example_columns import SOURCE
from hf_distill.data.label_names import IGNORED
from hf_distill.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor
    from transformers import BatchEncoding, PreTrainedTokenizerBase

# In place of the no-answer position, if the data has no questions without answer.
NOWHERE = -1


def at_row(row: int, split: str, what: str, key: str) -> UserError:
    """Return the error about one row."""
    return UserError(f"row {row} (counted from 0) of the {split} split {what}", key=f"columns.{key}")


def answers_of(value: Any) -> tuple[list[str | None], list[int | None]] | None:
    """Return the texts of all answers and their start positions; None if they are not known.

    >>> answers_of({"text": ["Paris"], "answer_start": [7]})
    (['Paris'], [7])
    >>> answers_of([{"text": "Paris", "answer_start": 7}])
    (['Paris'], [7])
    """
    if isinstance(value, Mapping):
        texts, starts = value.get("text"), value.get("answer_start")
        return None if texts is None and starts is None else (list(texts or []), list(starts or []))
    return None if value is None else ([one["text"] for one in value], [one["answer_start"] for one in value])


@dataclass(frozen=True)
class Window:
    """Positions of one window's tokens in the context.

    Attributes:
        starts: Start of each token in the context, in characters, `(tokens,)`; 0 outside the context.
        ends: End of each token in the context, in characters, `(tokens,)`; 0 outside the context.
        context: Whether each token belongs to the context, bool `(tokens,)`.
        nothing: Position of the token that stands for "no answer".
    """

    starts: np.ndarray[Any, Any]
    ends: np.ndarray[Any, Any]
    context: np.ndarray[Any, Any]
    nothing: int

    def covered(self, first: int, last: int) -> tuple[int, int] | None:
        """Return the first and last context token within characters `first` to `last` (exclusive); None without one."""
        here = (self.context & (self.ends > first) & (self.starts < last)).nonzero()[0]
        return (int(here[0]), int(here[-1])) if len(here) else None


@dataclass(frozen=True)
class Windows:
    """Cuts contexts into overlapping windows, each with the whole question before it.

    Attributes:
        tokenizer: A fast tokenizer, which gives the position of each token in the text.
        split: Name of the split, for messages.
        max_length: Maximum length of a window in tokens, with question and special tokens; None for a single window.
        stride: Number of tokens that a window shares with the one before.
        no_answer: Whether the label of a window without the answer is a special token; if not, it has no label.
    """

    tokenizer: PreTrainedTokenizerBase
    split: str
    max_length: int | None
    stride: int
    no_answer: bool

    def encode(self, batch: Mapping[str, list[Any]]) -> dict[str, Any]:
        """Return one row for each window.

        The columns for models are the model inputs, `labels` (start and end, -100 for none), `context_mask` and
        `length`. The others are `row` (in the data), `starts`, `ends` and `nothing` (as in `Window`), and `lost`: 1 in
        the first window of a row whose answer no window holds completely.

        Raises:
            UserError: A row has no question or context, or its answer is not in the context.
        """
        import numpy as np

        questions = [question.lstrip() for question in batch["question"]]
        self._check_room(questions, batch["row"])
        encoding = self.tokenizer(
            questions,
            batch["context"],
            truncation=False if self.max_length is None else "only_second",
            max_length=self.max_length,
            stride=0 if self.max_length is None else self.stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        sources = np.array(encoding.pop("overflow_to_sample_mapping"))
        windows = [self._window(encoding, at) for at in range(len(sources))]
        del encoding["offset_mapping"]
        labels, lost = self._labels(batch, sources, windows)
        masks = [window.context.astype(np.int8) for window in windows]
        if self.no_answer:
            for mask, window in zip(masks, windows, strict=True):
                mask[window.nothing] = 1
        return {
            **encoding,
            "labels": labels,
            "context_mask": masks,
            "length": [len(mask) for mask in masks],
            "row": [batch["row"][source] for source in sources],
            SOURCE: sources,
            "starts": [window.starts for window in windows],
            "ends": [window.ends for window in windows],
            "nothing": [window.nothing if self.no_answer else NOWHERE for window in windows],
            "lost": lost,
        }

    def _check_room(self, questions: Sequence[str], rows: Sequence[int]) -> None:
        added = self.tokenizer.num_special_tokens_to_add(pair=True)
        for row, ids in zip(rows, self.tokenizer(questions, add_special_tokens=False)["input_ids"], strict=True):
            if not ids:
                raise at_row(row, self.split, "has no question: the tokenizer gives no token for it.", "question")
            if self.max_length is None or self.max_length - added - len(ids) > self.stride:
                continue
            room = max(self.max_length - added - len(ids), 0)
            raise UserError(
                f"{self.max_length} tokens leave room for {room} of the context beside the question of row {row} "
                f"(counted from 0) of the {self.split} split, which has {len(ids)} tokens; wanted more than the "
                f"{self.stride} that windows overlap by. Raise max_length, lower the task's stride "
                "(task: {name: question-answering, stride: ...}), or drop the row.",
                key="max_length",
            )

    def _window(self, encoding: BatchEncoding, at: int) -> Window:
        import numpy as np

        part: list[int | None] = encoding.sequence_ids(at)
        context = np.array([one == 1 for one in part])
        offsets = np.array(encoding["offset_mapping"][at], dtype=np.int32) * context[:, None]
        return Window(offsets[:, 0], offsets[:, 1], context, self._nothing(encoding["input_ids"][at], part))

    def _nothing(self, ids: Sequence[int], part: Sequence[int | None]) -> int:
        """Return the position of the classification token, else of the token that begins a text, else 0."""
        special = [at for at, one in enumerate(part) if one is None]
        for token in (self.tokenizer.cls_token_id, self.tokenizer.bos_token_id):
            found = next((at for at in special if token is not None and ids[at] == token), None)
            if found is not None:
                return found
        return 0

    def _labels(
        self, batch: Mapping[str, list[Any]], sources: np.ndarray[Any, Any], windows: Sequence[Window]
    ) -> tuple[list[list[int]], list[int]]:
        labels, lost = [[IGNORED, IGNORED] for _ in windows], [0 for _ in windows]
        for source, row in enumerate(batch["row"]):
            own = (sources == source).nonzero()[0].tolist()
            if not any(windows[at].context.any() for at in own):
                raise at_row(row, self.split, "has no context: the tokenizer gives no token for it.", "context")
            answers = answers_of(batch["answers"][source]) if "answers" in batch else None
            if answers is None:
                continue
            span = self._span(row, batch["context"][source], *answers)
            places = [None] * len(own) if span is None else _whole([windows[at] for at in own], span)
            if span is not None and not any(places):
                lost[own[0]] = 1  # no label: "no answer" would be wrong
                continue
            for at, place in zip(own, places, strict=True):
                if place is not None:
                    labels[at] = list(place)
                elif self.no_answer:
                    labels[at] = [windows[at].nothing] * 2
        return labels, lost

    def _span(
        self, row: int, context: str, texts: Sequence[str | None], starts: Sequence[int | None]
    ) -> tuple[int, int] | None:
        """Return start and end (exclusive) of the first answer in characters; None for no answer."""
        if len(texts) != len(starts):
            what = f"has {len(texts)} answer texts and {len(starts)} answer_start; wanted equal numbers"
            raise at_row(row, self.split, what, "answers")
        if not texts:
            return None
        text, start = texts[0], starts[0]
        if text is None or start is None or not text.strip():
            what = "has an answer without text or answer_start. A question without an answer has empty lists."
            raise at_row(row, self.split, what, "answers")
        if start < 0 or context[start : start + len(text)] != text:
            found = f"the context has '{context[start : start + len(text)]}' there" if start >= 0 else "it is negative"
            place = context.find(text)
            where = f"the answer is at {place}" if place >= 0 else "the answer is not in the context"
            what = f"has the answer '{text}' with answer_start {start} (in characters), but {found}; {where}. Fix it."
            raise at_row(row, self.split, " ".join(what.split()), "answers")
        return start + len(text) - len(text.lstrip()), start + len(text.rstrip())


def _whole(windows: Sequence[Window], span: tuple[int, int]) -> list[tuple[int, int] | None]:
    """Return first and last token of the answer in each window; None if the window does not hold all of it."""
    covered = [window.covered(*span) for window in windows]
    found = [(window, place) for window, place in zip(windows, covered, strict=True) if place is not None]
    if not found:
        return [None] * len(windows)
    first = min(window.starts[place[0]] for window, place in found)
    last = max(window.ends[place[1]] for window, place in found)
    return [
        place if place is not None and window.starts[place[0]] == first and window.ends[place[1]] == last else None
        for window, place in zip(windows, covered, strict=True)
    ]


@dataclass(frozen=True)
class PadWindows:
    """Pads windows on the right, also if the tokenizer pads on the left, because labels are positions.

    Attributes:
        tokenizer: Has the padding token.
    """

    tokenizer: PreTrainedTokenizerBase

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Return the model inputs, `context_mask` `(batch, longest)` and `labels` `(batch, 2)`."""
        import torch
        from transformers.data.data_collator import pad_without_fast_tokenizer_warning

        own = ("context_mask", "labels")
        inputs = [{key: value for key, value in example.items() if key not in own} for example in examples]
        pad: Any = pad_without_fast_tokenizer_warning
        batch: dict[str, Tensor] = dict(
            pad(self.tokenizer, inputs, padding=True, padding_side="right", return_tensors="pt")
        )
        longest = batch["input_ids"].shape[1]
        masks = [list(example["context_mask"]) for example in examples]
        batch["context_mask"] = torch.tensor([mask + [0] * (longest - len(mask)) for mask in masks])
        batch["labels"] = torch.tensor([example["labels"] for example in examples])
        return batch
