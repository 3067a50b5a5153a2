"""Tokenise texts, completions and conversations, and choose the tokens that a model learns to predict."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, chain, takewhile
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from hf_distill.data import column
from hf_distill.data.example_columns import PROMPT_LENGTH, SOURCE
from hf_distill.data.label_names import IGNORED, UNLABELLED
from hf_distill.errors import UserError
from hf_distill.tasks.chat_messages import SILENT, ChatText, NotLearned
from hf_distill.tasks.chat_template import ChatTemplate
from hf_distill.tasks.conversations import read_conversation
from hf_distill.tasks.language import token_features
from hf_distill.tasks.spanned import spanned
from hf_distill.tasks.tokenising import tokenise, with_rows

if TYPE_CHECKING:
    from datasets import Dataset, Features
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

Form = Literal["text", "completion", "messages"]
# Form of the examples -> the columns that it needs.
FORMS: dict[Form, tuple[str, ...]] = {
    "text": ("text",),
    "completion": ("prompt", "completion"),
    "messages": ("messages",),
}
# Columns with the token ids of a prompt and of its completion, if they are known: tokenising their texts again could
# give other ids.
PROMPT_IDS, COMPLETION_IDS = "prompt_ids", "completion_ids"
# Column that says who wrote a completion: what the student wrote itself is compared with the teacher, and is no label.
WRITTEN_BY = "written_by"
_FLAGS = ("merged", "further", "unsaid", "unended")
# Reason to drop an example without a token to learn.
_NOTHING = "nothing in them to learn"


@dataclass(frozen=True)
class Tokens:
    """One tokenised example.

    Attributes:
        ids: Token ids.
        labels: The ids to learn, -100 elsewhere. The first token is never learned, as no token comes before it.
        merged: Whether a learned token begins in the text before the learned part.
        left_out: Why the example is dropped; empty if it is not.
        further: Whether its row has made another example before.
        unsaid: Whether the text lacks reasoning that the row has.
        unended: Whether the last turn has no end that can be learned.
        prompt: How many of the tokens a model is to complete; 0 where none does.
    """

    ids: list[int]
    labels: list[int]
    merged: bool = False
    left_out: str = ""
    further: bool = False
    unsaid: bool = False
    unended: bool = False
    prompt: int = 0


@dataclass(frozen=True)
class TextEncoder:
    """Tokenises raw examples.

    Attributes:
        forms: Form of the examples -> the columns that it needs.
        lacks: What the examples of a split lack if all of them are dropped.
        task: Name of the task.
        tokenizer: Tokenizer of both models.
        max_length: Maximum length of an example in tokens; None for no limit.
        form: Form of the examples.
        packing: Whether texts are joined and cut into blocks.
        chat: Whether examples are conversations: `messages`, or prompts and completions that are lists of messages.
        settings: Extra arguments for the chat template.
    """

    forms: ClassVar[Mapping[Form, tuple[str, ...]]] = FORMS
    lacks: ClassVar[str] = "anything to learn"

    task: str
    tokenizer: PreTrainedTokenizerBase
    max_length: int | None
    form: Form
    packing: bool
    chat: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def deciding(self) -> tuple[Any, ...]:
        """What the tokens depend on beside the examples and the tokenizer, as JSON values."""
        return self.task, self.max_length, self.form, self.packing, dict(self.settings)

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of every tokenised row beside the usual ones."""
        return ()

    def check(self, splits: Mapping[str, Dataset]) -> None:
        """Refuse conversations that are missing or for which the tokenizer has no usable template."""
        if not self.chat:
            return
        ChatTemplate(self.tokenizer, self.settings).check(f"columns.{FORMS[self.form][-1]}")
        for name, split in splits.items():
            for role in FORMS[self.form]:
                if missing := column(split, role).null_count:
                    raise UserError(
                        f"{missing} of {len(split)} conversations of the {name} split are missing (None). Drop these "
                        "rows.",
                        key=f"columns.{role}",
                    )

    def __call__(self, batch: Mapping[str, list[Any]], rows: Sequence[int] = (), split: str = "") -> list[Tokens]:
        """Return the examples of a batch; one that has nothing to learn is empty and has the reason in `left_out`.

        Args:
            batch: Raw columns.
            rows: Row numbers, for messages.
            split: Name of the split, for messages.
        """
        if self.chat:
            made = list(self._chats(batch, [f"row {row} of the {split} split" for row in rows]))
        else:
            made = list({"text": self._texts, "completion": self._completions}[self.form](batch))
        if self.packing:
            assert self.max_length is not None
            made = list(blocks(made, self.max_length))
        elif self.max_length is not None:
            end = self.max_length + 1  # one token more than the limit stays, so that truncated examples can be counted
            made = [replace(one, ids=one.ids[:end], labels=one.labels[:end]) for one in made]
        limit = self.max_length
        made = [
            one
            if one.left_out or any(label != IGNORED for label in one.labels[1:limit])
            else Tokens([], [], left_out=_NOTHING, further=one.further)
            for one in made
        ]
        return [one for one in made if not one.left_out] if self.packing else made

    def _tokenise(self, texts: list[str]) -> list[list[int]]:
        return _ids(self.tokenizer, texts)

    def _ended(self, ids: list[int]) -> list[int]:
        end = self.tokenizer.eos_token_id
        return ids if end is None or ids[-1:] == [end] else [*ids, end]

    def _texts(self, batch: Mapping[str, list[Any]]) -> Iterator[Tokens]:
        for text, ids in zip(batch["text"], self._tokenise(batch["text"]), strict=True):
            ended = self._ended(ids) if text.strip() else []
            yield Tokens(ended, [IGNORED, *ended[1:]] if ended else [])

    def _completions(self, batch: Mapping[str, list[Any]]) -> Iterator[Tokens]:
        if COMPLETION_IDS in batch:
            own = of_student(batch)
            for row, (prompt, rest) in enumerate(
                zip(prompt_ids(self.tokenizer, batch), batch[COMPLETION_IDS], strict=True)
            ):
                first = max(len(prompt), 1)
                ids = [*prompt, *rest]
                learned = [UNLABELLED] * len(ids[first:]) if row in own else ids[first:]
                yield Tokens(ids, [IGNORED] * first + learned)
            return
        for prompt, whole in prompts_and_wholes(self.tokenizer, batch["prompt"], batch["completion"]):
            # If the end of the prompt and the beginning of the completion make one token, this token is learned.
            shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(prompt, whole, strict=False)))
            ids = self._ended(whole)
            first = max(shared, 1)
            yield Tokens(ids, [IGNORED] * first + ids[first:], merged=shared < len(prompt))

    def _chats(self, batch: Mapping[str, list[Any]], places: Sequence[str]) -> Iterator[Tokens]:
        template = ChatTemplate(self.tokenizer, self.settings)
        roles = [role for role in (*FORMS[self.form], "tools", "chat_template_kwargs") if role in batch]
        made: list[ChatText | Tokens] = []
        further: list[bool] = []
        for index, place in enumerate(places):
            conversation = read_conversation({role: batch[role][index] for role in roles}, place)
            try:
                texts: Sequence[ChatText | Tokens] = template.texts(conversation)
            except NotLearned as reason:
                texts = [Tokens([], [], left_out=str(reason))]
            # A template is a program and can raise any error on roles or orders that it does not know.
            except Exception as error:
                why = " ".join(str(error).split()) or type(error).__name__
                raise UserError(
                    f"the chat template refuses a conversation: {why} ({place})", key=f"columns.{FORMS[self.form][-1]}"
                ) from error
            made += texts
            further += [number > 0 for number in range(len(texts))]
        tokens = iter(spanned(self.tokenizer, [one for one in made if isinstance(one, ChatText)]))
        for one, also in zip(made, further, strict=True):
            if isinstance(one, Tokens):
                yield one
                continue
            ids, learned, merged = next(tokens)
            labels = [token if taken else IGNORED for token, taken in zip(ids, learned, strict=True)]
            merged = merged and not one.marked
            yield Tokens(ids, [IGNORED, *labels[1:]], merged, "", also, one.unsaid, one.unended)


def prompts_and_wholes(
    tokenizer: PreTrainedTokenizerBase, prompts: list[str], completions: list[str]
) -> Iterator[tuple[list[int], list[int]]]:
    """Yield, for every example, the tokens of the prompt, and the tokens of prompt and completion as one text."""
    wholes = [prompt + rest for prompt, rest in zip(prompts, completions, strict=True)]
    yield from zip(_prompts(tokenizer, prompts), _ids(tokenizer, wholes), strict=True)


def prompt_ids(tokenizer: PreTrainedTokenizerBase, batch: Mapping[str, list[Any]]) -> Sequence[list[int]]:
    """Return the tokens of the prompts of a batch: those that the data gives, else those of their texts."""
    return batch[PROMPT_IDS] if PROMPT_IDS in batch else prompts_of(tokenizer, batch["prompt"])


def of_student(batch: Mapping[str, list[Any]]) -> set[int]:
    """Return the rows of a batch whose completion the student wrote itself."""
    return {row for row, who in enumerate(batch.get(WRITTEN_BY, ())) if who == "student"}


def prompts_of(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Return the tokens of prompts, as they begin a text."""
    return list(_prompts(tokenizer, texts))


def _prompts(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> Iterator[list[int]]:
    for ids in _ids(tokenizer, texts):
        # Some tokenizers add an end token to every text.
        yield ids[:-1] if ids[-1:] == [tokenizer.eos_token_id] else ids


def _ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    found: list[list[int]] = tokenizer(texts, verbose=False)["input_ids"] if texts else []
    return found


def blocks(texts: list[Tokens], length: int) -> Iterator[Tokens]:
    """Yield blocks of `length` tokens, cut from the joined texts; the last may be shorter."""
    ids = list(chain.from_iterable(text.ids for text in texts))
    labels = list(chain.from_iterable(text.labels for text in texts))
    for start in range(0, len(ids), length):
        end = start + length
        yield Tokens(ids[start:end], [IGNORED, *labels[start + 1 : end]])


class TeacherColumns(Protocol):
    """What makes further columns of the examples of a batch.

    Attributes:
        settings: What they depend on beside the student's tokenizer, as JSON values.
        features: Their types.
    """

    @property
    def settings(self) -> tuple[Any, ...]: ...  # noqa: D102
    @property
    def features(self) -> Features: ...  # noqa: D102

    def columns(
        self, batch: Mapping[str, list[Any]], rows: Sequence[int], split: str, made: Sequence[Tokens]
    ) -> dict[str, list[Any]]:
        """Return the columns, a row for each example in `made`."""


def tokenise_split(split: Dataset, name: str, encoder: TextEncoder, beside: TeacherColumns | None = None) -> Dataset:
    """Return `input_ids`, `labels` and `length` of a split; the next run reads them from the cache of `datasets`.

    Args:
        split: Raw examples.
        name: Name of the split.
        encoder: Tokenises for the student.
        beside: Makes the columns of a teacher with a tokenizer of its own.
    """

    def encode(batch: dict[str, list[Any]], rows: list[int]) -> dict[str, list[Any]]:
        made, limit = encoder(batch, rows, name), encoder.max_length
        return {
            "input_ids": [one.ids[:limit] for one in made],
            "labels": [one.labels[:limit] for one in made],
            "length": [len(one.ids[:limit]) for one in made],
            **({PROMPT_LENGTH: [one.prompt for one in made]} if PROMPT_LENGTH in encoder.columns else {}),
            "cut": [limit is not None and len(one.ids) > limit for one in made],
            **{flag: [getattr(one, flag) for one in made] for flag in _FLAGS},
            "left_out": [one.left_out for one in made],
            **({} if beside is None else beside.columns(batch, rows, name, made)),
            **({} if encoder.packing else {SOURCE: _sources(made)}),
        }

    settings, features = encoder.deciding, token_features("cut", *_FLAGS, texts=("left_out",), numbers=encoder.columns)
    if beside is not None:
        settings, features = (*settings, *beside.settings), type(features)({**features, **beside.features})
    tokenised = tokenise(split, name, encode, encoder.tokenizer, *settings, features=features, with_rows=True)
    _warn(split, name, tokenised, encoder)
    # The other forms can make several examples of a row.
    if not encoder.packing and (encoder.columns or (encoder.form == "completion" and not encoder.chat)):
        tokenised = with_rows(split, tokenised)
    if any(left_out := tokenised["left_out"][:]):
        tokenised = tokenised.select([row for row, reason in enumerate(left_out) if not reason])
    return tokenised.remove_columns(["cut", *_FLAGS, "left_out"])


def _sources(made: Sequence[Tokens]) -> list[int]:
    """Return, for each example, the row of the batch that it was made of."""
    return [place - 1 for place in accumulate(not one.further for one in made)]


def _warn(split: Dataset, name: str, tokenised: Dataset, encoder: TextEncoder) -> None:
    """Warn about dropped and truncated examples, once for each split; refuse a split without anything to learn."""
    within = "" if encoder.max_length is None else f" within {encoder.max_length} tokens"
    reasons = Counter(reason for reason in tokenised["left_out"] if reason)
    if reasons.total() == len(tokenised):
        others = "; ".join(reason for reason in reasons if reason != _NOTHING)
        if SILENT in reasons:
            others += ". Let a model write it: completions: {by: student}"
        raise UserError(
            f"no example of the {name} split has {encoder.lacks}{within}{f': {others}' if others else ''}.",
            key=f"columns.{encoder.forms[encoder.form][-1]}",
        )
    cut, merged, further, unsaid, unended = (sum(tokenised[flag]) for flag in ("cut", *_FLAGS))
    if further:
        logger.info(
            "%s conversations of the %s split make %s examples: the chat template writes a turn of the assistant "
            "differently once more messages follow, so each turn is learned as the model sees it when it writes it",
            *(len(split), name, len(tokenised)),
        )
    for reason, number in reasons.items():
        logger.warning(
            "%s of %s examples of the %s split are dropped: %s%s",
            *(number, len(split) + further, name, reason, within if reason == _NOTHING else ""),
        )
    if unsaid:
        logger.warning(
            "in %s of %s examples of the %s split the chat template leaves out reasoning, which is not learned",
            *(unsaid, len(tokenised), name),
        )
    if unended:
        logger.warning(
            "in %s of %s examples of the %s split the chat template writes no end after the assistant's turn, so "
            "the student does not learn where to stop. Change the template so that it writes the end-of-text token",
            *(unended, len(tokenised), name),
        )
    if cut:
        way_out = "; task: {packing: true} would use all tokens" if encoder.form == "text" else ""
        logger.info("%s of %s examples of the %s split are truncated%s", cut, len(split), name, way_out)
    if merged:
        logger.warning(
            "in %s of %s examples of the %s split the end of the prompt and the beginning of the completion are one "
            "token, which is learned. The prompt alone gives other tokens when the model is used: remove the space at "
            "the end of prompts",
            *(merged, len(split), name),
        )
