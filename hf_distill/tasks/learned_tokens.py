"""Texts, completions and conversations as tokens, and which of these a model learns to predict."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, takewhile
from typing import TYPE_CHECKING, Any, Literal

from hf_distill.data import column
from hf_distill.errors import UserError
from hf_distill.labels import IGNORED
from hf_distill.tasks.language import token_features
from hf_distill.tasks.tokenising import tokenise

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

Form = Literal["text", "completion", "messages"]
# Form of the examples -> the roles it needs.
FORMS: dict[Form, tuple[str, ...]] = {
    "text": ("text",),
    "completion": ("prompt", "completion"),
    "messages": ("messages",),
}
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True)
class _Tokens:
    """One example.

    Attributes:
        ids: Of its tokens.
        labels: The ids that are learned, -100 elsewhere; the first is never learned, nothing comes before it.
        merged: Whether prompt and completion share a token.
    """

    ids: list[int]
    labels: list[int]
    merged: bool = False


@dataclass(frozen=True)
class TextEncoder:
    """Makes tokens of raw examples.

    Attributes:
        task: Name of the task.
        tokenizer: Of both models.
        max_length: Longest example.
        form: What the examples are.
        packed: Whether they become blocks.
    """

    task: str
    tokenizer: PreTrainedTokenizerBase
    max_length: int | None
    form: Form
    packed: bool

    def check(self, splits: Mapping[str, Dataset]) -> None:
        """Refuse conversations that cannot be told apart into who said what."""
        if self.form != "messages":
            return
        template = self.tokenizer.chat_template
        if template is None:
            raise UserError(
                "the tokenizer has no chat template, so how messages become one text is not known. Name the tokenizer "
                "of a chat model (tokenizer: ...), or use the columns prompt and completion.",
                key="columns.messages",
            )
        if isinstance(template, str) and not _GENERATION.search(template):
            raise UserError(
                "the tokenizer's chat template does not mark what the assistant says ({% generation %} ... "
                "{% endgeneration %}), so there is nothing to tell the answers to learn from the questions. Add the "
                "marks to a copy of the tokenizer (tokenizer: DIRECTORY), or use the columns prompt and completion.",
                key="columns.messages",
            )
        for name, split in splits.items():
            if missing := column(split, "messages").null_count:
                raise UserError(
                    f"{missing} of {len(split)} conversations of the {name} split are missing (None). Drop these rows.",
                    key="columns.messages",
                )

    def __call__(self, batch: Mapping[str, list[Any]]) -> list[_Tokens]:
        """Return the examples of a batch, each with at least one label."""
        made = list({"text": self._texts, "completion": self._completions, "messages": self._chats}[self.form](batch))
        if self.packed:
            assert self.max_length is not None
            made = list(_blocks(made, self.max_length))
        elif self.max_length is not None:
            end = self.max_length + 1  # one too many stays, to be seen by whoever counts
            made = [_Tokens(one.ids[:end], one.labels[:end], one.merged) for one in made]
        limit = self.max_length
        return [one for one in made if any(label != IGNORED for label in one.labels[1:limit])]

    def _tokenise(self, texts: list[str]) -> list[list[int]]:
        found: list[list[int]] = self.tokenizer(texts, verbose=False)["input_ids"] if texts else []
        return found

    def _ended(self, ids: list[int]) -> list[int]:
        end = self.tokenizer.eos_token_id
        return ids if end is None or ids[-1:] == [end] else [*ids, end]

    def _texts(self, batch: Mapping[str, list[Any]]) -> Iterator[_Tokens]:
        for ids in map(self._ended, self._tokenise([text for text in batch["text"] if text.strip()])):
            yield _Tokens(ids, [IGNORED, *ids[1:]])

    def _completions(self, batch: Mapping[str, list[Any]]) -> Iterator[_Tokens]:
        wholes = [prompt + rest for prompt, rest in zip(batch["prompt"], batch["completion"], strict=True)]
        for prompt, whole in zip(self._tokenise(batch["prompt"]), self._tokenise(wholes), strict=True):
            if prompt[-1:] == [self.tokenizer.eos_token_id]:  # some tokenizers end every text by themselves
                prompt = prompt[:-1]
            # Where the last characters of the prompt and the first of the completion make one token, it is learned.
            shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(prompt, whole, strict=False)))
            ids = self._ended(whole)
            first = max(shared, 1)
            yield _Tokens(ids, [IGNORED] * first + ids[first:], merged=shared < len(prompt))

    def _chats(self, batch: Mapping[str, list[Any]]) -> Iterator[_Tokens]:
        for messages in batch["messages"]:
            try:
                made: Any = self.tokenizer.apply_chat_template(
                    messages, return_dict=True, return_assistant_tokens_mask=True
                )
            # A template is a program, and raises what it likes on roles or orders that it does not know.
            except Exception as error:
                why = " ".join(str(error).split()) or type(error).__name__
                raise UserError(f"the chat template refuses a conversation: {why}", key="columns.messages") from error
            pairs = zip(made["input_ids"], made["assistant_masks"], strict=True)
            labels = [token if learned else IGNORED for token, learned in pairs]
            yield _Tokens(made["input_ids"], [IGNORED, *labels[1:]])


def _blocks(texts: list[_Tokens], length: int) -> Iterator[_Tokens]:
    """Join texts and cut them into blocks."""
    ids = list(chain.from_iterable(text.ids for text in texts))
    labels = list(chain.from_iterable(text.labels for text in texts))
    for start in range(0, len(ids), length):
        end = start + length
        yield _Tokens(ids[start:end], [IGNORED, *labels[start + 1 : end]])


def tokenise_split(split: Dataset, name: str, encoder: TextEncoder) -> Dataset:
    """Return `input_ids`, `labels` and `length` of a split; found again in the cache on the next run."""

    def encode(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        made, limit = encoder(batch), encoder.max_length
        return {
            "input_ids": [one.ids[:limit] for one in made],
            "labels": [one.labels[:limit] for one in made],
            "length": [len(one.ids[:limit]) for one in made],
            "cut": [limit is not None and len(one.ids) > limit for one in made],
            "merged": [one.merged for one in made],
        }

    settings = (encoder.task, encoder.max_length, encoder.form, encoder.packed)
    features = token_features("cut", "merged")
    tokenised = tokenise(split, name, encode, encoder.tokenizer, *settings, features=features)
    _say(split, name, tokenised, encoder)
    return tokenised.remove_columns(["cut", "merged"])


def _say(split: Dataset, name: str, tokenised: Dataset, encoder: TextEncoder) -> None:
    """Say what was left out, once for a split."""
    if len(tokenised) == 0:
        raise UserError(
            f"no example of the {name} split has anything to learn within {encoder.max_length} tokens.",
            key=f"columns.{FORMS[encoder.form][-1]}",
        )
    if not encoder.packed and (dropped := len(split) - len(tokenised)):
        logger.warning(
            "%s of %s examples of the %s split are left out: nothing in them to learn%s",
            *(dropped, len(split), name),
            "" if encoder.max_length is None else f" within {encoder.max_length} tokens",
        )
    cut, merged = (sum(tokenised[flag]) for flag in ("cut", "merged"))
    if cut:
        way_out = "; task: {packed: true} would use all of them" if encoder.form == "text" else ""
        logger.info("%s of %s examples of the %s split are cut at the end%s", cut, len(split), name, way_out)
    if merged:
        logger.warning(
            "in %s of %s examples of the %s split the end of the prompt and the beginning of the completion are one "
            "token, which is learned. Whoever gives the prompt alone gives other tokens: end prompts without a space",
            *(merged, len(split), name),
        )
