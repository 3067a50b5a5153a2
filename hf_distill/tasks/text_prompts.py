"""Tokenise prompts that a model completes, and the completions that the data has of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from hf_distill.data import column
from hf_distill.data.example_columns import PROMPT_LENGTH
from hf_distill.data.label_names import IGNORED, UNLABELLED
from hf_distill.data.misfits import is_text, misfit
from hf_distill.errors import UserError
from hf_distill.tasks.chat_messages import ChatText, NotLearned
from hf_distill.tasks.chat_template import ChatTemplate
from hf_distill.tasks.conversations import read_prompt
from hf_distill.tasks.language import check_texts
from hf_distill.tasks.spanned import spanned
from hf_distill.tasks.text_tokens import (
    COMPLETION_IDS,
    FORMS,
    PROMPT_IDS,
    Form,
    TextEncoder,
    Tokens,
    blocks,
    of_student,
    prompt_ids,
)

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

# Form of the examples -> the columns that it needs where a model writes the completions.
PROMPT_FORMS: dict[Form, tuple[str, ...]] = {**FORMS, "completion": ("prompt",)}
EMPTY = "their prompt is empty"
# How many rows of each split are looked at to find token ids of another tokenizer.
LOOKED_AT = 200


@dataclass(frozen=True)
class PromptEncoder(TextEncoder):
    """Tokenises prompts, each with its own completion if the data has one.

    A prompt is a column `prompt`, a conversation up to the assistant's last turn, or the beginning of a plain text. It
    is never cut: one that leaves no room for `new_tokens` is dropped. A completion of the data is cut at `max_length`.

    Attributes:
        new_tokens: Largest number of tokens that a model writes.
        prompt_tokens: Of plain texts, how many of the first tokens are the prompt.
    """

    forms: ClassVar[Mapping[Form, tuple[str, ...]]] = PROMPT_FORMS
    lacks: ClassVar[str] = "a prompt to complete"

    new_tokens: int = 1
    prompt_tokens: int | None = None

    @property
    def deciding(self) -> tuple[Any, ...]:
        """What the tokens depend on beside the examples and the tokenizer, as JSON values."""
        return (*super().deciding, "prompts", self.new_tokens, self.prompt_tokens)

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of every tokenised row beside the usual ones."""
        return (PROMPT_LENGTH,)

    def check(self, splits: Mapping[str, Dataset]) -> None:
        """Refuse prompts that are missing, of another type, or cannot be told from what follows them.

        Raises:
            UserError: They are; the message says where and what to do.
        """
        if self.form == "text" and self.prompt_tokens is None:
            raise UserError(
                "plain texts have no prompt for a model to complete. Say how many of their first tokens are it, such "
                "as completions: {prompt_tokens: 32}.",
                key="completions.prompt_tokens",
            )
        if self.max_length is not None and self.max_length <= self.new_tokens:
            raise UserError(
                f"{self.new_tokens} new tokens leave no room for a prompt: inputs have at most {self.max_length} "
                f"tokens. Lower it, or raise data.max_length as far as the models allow.",
                key="completions.max_new_tokens",
            )
        if self.chat:
            key = PROMPT_FORMS[self.form][0]
            ChatTemplate(self.tokenizer, self.settings).check(f"columns.{key}")
            for name, split in splits.items():
                if missing := column(split, key).null_count:
                    raise UserError(
                        f"{missing} of {len(split)} conversations of the {name} split are missing (None). Drop these "
                        "rows.",
                        key=f"columns.{key}",
                    )
            return
        check_texts(splits, PROMPT_FORMS[self.form])
        for name, split in splits.items():
            if self.form == "completion" and "completion" in split.column_names:
                texts = column(split, "completion")
                if str(texts.type) not in ("string", "large_string", "null"):
                    raise misfit(texts, "completion", name, "text. Name another column, or convert it.", is_text)

    def __call__(self, batch: Mapping[str, list[Any]], rows: Sequence[int] = (), split: str = "") -> list[Tokens]:
        """Return the examples of a batch; one that cannot be used is empty and has the reason in `left_out`.

        Args:
            batch: Raw columns.
            rows: Row numbers, for messages.
            split: Name of the split, for messages.
        """
        if self.chat:
            made = list(self._conversations(batch, [f"row {row} of the {split} split" for row in rows]))
        elif self.form == "text":
            made = list(self._begun(batch))
        else:
            made = list(self._prompted(batch))
        made = [self._fitting(one) for one in made]
        return [one for one in made if not one.left_out] if self.packing else made

    def _fitting(self, one: Tokens) -> Tokens:
        """Return an example, its own completion one token longer than the limit so that it is counted as truncated."""
        reason, limit = one.left_out, self.max_length
        if not reason and not one.prompt:
            reason = EMPTY
        if not reason and limit is not None and one.prompt + self.new_tokens > limit:
            reason = (
                f"their prompt leaves no room for {self.new_tokens} new tokens (completions.max_new_tokens) within "
                f"{limit}"
            )
        if reason:
            return Tokens([], [], left_out=reason)
        end = None if limit is None else limit + 1
        return replace(one, ids=one.ids[:end], labels=one.labels[:end])

    def _begun(self, batch: Mapping[str, list[Any]]) -> Iterator[Tokens]:
        """Yield plain texts, or blocks of them: the first tokens are the prompt, the others its completion."""
        number = self.prompt_tokens
        assert number is not None
        texts = list(self._texts(batch))
        if self.packing:
            assert self.max_length is not None
            texts = list(blocks(texts, self.max_length))
        for one in texts:
            if len(one.ids) <= number:
                short = f"they have no token after the first {number} (completions.prompt_tokens)"
                yield Tokens([], [], left_out=short if one.ids else EMPTY)
                continue
            yield _completed(one.ids[:number], one.ids[number:])

    def _prompted(self, batch: Mapping[str, list[Any]]) -> Iterator[Tokens]:
        """Yield prompts and their completions, as far as the data has one."""
        prompts = prompt_ids(self.tokenizer, batch)
        if COMPLETION_IDS in batch:
            by_student = of_student(batch)
            for row, (ids, rest) in enumerate(zip(prompts, batch[COMPLETION_IDS], strict=True)):
                made = _completed(ids, rest or [])
                if row in by_student:
                    made = replace(made, labels=[IGNORED] * len(ids) + [UNLABELLED] * len(rest or []))
                yield made
            return
        own = batch.get("completion") or [None] * len(prompts)
        has = [row for row, text in enumerate(own) if text is not None]
        whole = self._completions(
            {"prompt": [batch["prompt"][row] for row in has], "completion": [own[row] for row in has]}
        )
        completed = dict(zip(has, whole, strict=True))
        for row, (ids, text) in enumerate(zip(prompts, batch["prompt"], strict=True)):
            if not text.strip():
                yield Tokens([], [], left_out=EMPTY)
            elif row in completed:
                first = next((place for place, label in enumerate(completed[row].labels) if label != IGNORED), len(ids))
                yield replace(completed[row], prompt=first)
            else:
                yield _completed(ids, [])

    def _conversations(self, batch: Mapping[str, list[Any]], places: Sequence[str]) -> Iterator[Tokens]:
        """Yield conversations: with the header of the next turn, or with the last turn as its completion."""
        template = ChatTemplate(self.tokenizer, self.settings)
        roles = [role for role in (*FORMS[self.form], "tools", "chat_template_kwargs") if role in batch]
        made: list[ChatText | None] = []
        for index, place in enumerate(places):
            conversation = read_prompt({role: batch[role][index] for role in roles}, place)
            if len(conversation.messages) == len(conversation.turns):
                made.append(None)
                continue
            try:
                made.append(self._text(template, conversation))
            # A template is a program and can raise any error on roles or orders that it does not know.
            except Exception as error:
                why = " ".join(str(error).split()) or type(error).__name__
                raise UserError(
                    f"the chat template refuses a conversation: {why} ({place})",
                    key=f"columns.{PROMPT_FORMS[self.form][0]}",
                ) from error
        tokens = iter(spanned(self.tokenizer, [one for one in made if one is not None]))
        for one in made:
            if one is None:
                yield Tokens([], [], left_out=EMPTY)
                continue
            ids, learned, _ = next(tokens)
            if one.spans and True not in learned:
                yield Tokens([], [], left_out="their last turn has no tokens")
                continue
            first = learned.index(True) if True in learned else len(ids)
            end = len(learned) - learned[::-1].index(True) if True in learned else first
            yield replace(_completed(ids[:first], ids[first:end]), unended=one.unended)

    def _text(self, template: ChatTemplate, conversation: Any) -> ChatText:
        """Return the text of a conversation; its span is the completion, if there is one that the template shows."""
        if conversation.turns:
            try:
                return template.texts(conversation)[-1]
            except NotLearned:
                turn = conversation.turns[0]
                conversation = replace(
                    conversation, messages=conversation.messages[:turn], learned=conversation.learned[:turn]
                )
        return ChatText(template.prompt(conversation), [])


def _completed(prompt: Sequence[int], completion: Sequence[int]) -> Tokens:
    labels = [IGNORED] * len(prompt) + list(completion)
    return Tokens([*prompt, *completion], labels, prompt=len(prompt))


def check_share(split: Dataset, share: float) -> None:
    """Refuse to mix in completions of the data where a row has none.

    Args:
        split: The tokenised train split.
        share: Share of rows whose completion a model writes.

    Raises:
        UserError: Rows have none.
    """
    without = len(without_completion(split)) if share < 1 else 0
    if without:
        raise UserError(
            f"{100 * (1 - share):.0f} % of the rows would keep the completion of the data, and {without:,} of "
            f"{len(split):,} rows of the train split have none. Leave out share, or drop these rows.",
            key="completions.share",
        )


def check_own(split: Dataset) -> None:
    """Refuse to learn from completions of the data alone, in one of several stages, where a row has none.

    Args:
        split: The tokenised train split.

    Raises:
        UserError: Rows have none.
    """
    if without := len(without_completion(split)):
        raise UserError(
            f"{without:,} of {len(split):,} rows of the train split have no completion to learn from. Let the student "
            "write in every stage, or drop these rows.",
            key="completions.by",
        )


def without_completion(split: Dataset) -> list[int]:
    """Return the rows of a tokenised split that are a prompt alone."""
    import numpy as np

    lengths, prompts = (column(split, name).to_numpy() for name in ("length", PROMPT_LENGTH))
    return [int(row) for row in np.flatnonzero(lengths <= prompts)]


def check_ids(splits: Mapping[str, Dataset], tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse token ids in the data that are those of another tokenizer.

    Raises:
        UserError: The ids of a prompt are not the tokens of its text.
    """
    for name, split in splits.items():
        if PROMPT_IDS not in split.column_names:
            continue
        last = len(tokenizer) - 1
        for row, (text, ids) in enumerate(zip(split["prompt"][:LOOKED_AT], split[PROMPT_IDS][:LOOKED_AT], strict=True)):
            if max(ids, default=0) > last or tokenizer.decode(ids) != text:
                raise UserError(
                    f"row {row} (counted from 0) of the {name} split has token ids in '{PROMPT_IDS}' that are not its "
                    "prompt in the tokens of this run: another tokenizer has written them. Write the data again with "
                    f"this one (hf-distill generate), or remove the columns '{PROMPT_IDS}' and '{COMPLETION_IDS}', so "
                    "that the texts are tokenised.",
                    key="columns",
                )
