"""Text generation: causal language models on plain text, on completions of prompts, or on conversations."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, takewhile
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from hf_distill.component import component
from hf_distill.data import by_length, column
from hf_distill.errors import UserError
from hf_distill.labels import IGNORED
from hf_distill.models import Head, has_class
from hf_distill.tasks.base import Prepared, Setup, Task
from hf_distill.tasks.language import (
    PadTokens,
    check_texts,
    no_logits,
    pad_token_id,
    perplexity,
    token_features,
    vocabulary,
)
from hf_distill.tasks.tokenising import tokenise

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

Form = Literal["text", "completion", "messages"]
# Form of the examples -> the roles it needs.
FORMS: dict[Form, tuple[str, ...]] = {
    "text": ("text",),
    "completion": ("prompt", "completion"),
    "messages": ("messages",),
}
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


@component
class TextGeneration(Task):
    """Causal language models: every token is predicted from those before it.

    What is learned: of plain text everything; of a prompt and its completion the completion; of a conversation what
    the assistant said, with the marks of the tokenizer's chat template. Texts and completions end with the
    tokenizer's end of text.

    Attributes:
        packed: Join plain texts and cut them into blocks of exactly `data.max_length` tokens (the last may be shorter):
            no padding, nothing truncated. Attention sees the earlier texts of a block, as in the pre-training of GPT
            models; the first token of a text is not learned, because what comes before it says nothing about it.
        examples: Which columns to learn from, where there are several kinds: `text`, `completion` (with `prompt`) or
            `messages`. Read from the columns if left out.
    """

    name: ClassVar[str] = "text-generation"
    auto_class: ClassVar[str] = "AutoModelForCausalLM"
    roles: ClassVar[Mapping[str, bool]] = {"text": False, "prompt": False, "completion": False, "messages": False}

    packed: bool = False
    examples: Form | None = None

    def check_model(self, config: PretrainedConfig) -> None:
        """Refuse models that see what they are to predict; see `Task.check_model`."""
        if config.is_encoder_decoder:
            raise UserError(
                f"a {config.model_type} model reads with an encoder and writes with a decoder. Wanted one that goes on "
                "with a text (GPT-2, Llama, ...); or task: summarization or translation.",
                key="model",
            )
        # Encoders have a class for this too, and without `is_decoder` it looks ahead.
        if has_class(config, "AutoModelForMaskedLM") and not getattr(config, "is_decoder", False):
            raise UserError(
                f"a {config.model_type} model sees the words after the one it is to predict. Wanted one that sees only "
                "those before it (GPT-2, Llama, ...); or task: fill-mask.",
                key="model",
            )

    def prepare(self, splits: Mapping[str, Dataset], setup: Setup) -> Prepared:
        """See `Task.prepare`."""
        from hf_distill.metric_table import DEFAULTS
        from hf_distill.metrics import check
        from hf_distill.rows import TokenRows

        tokenizer, max_length = setup.tokenizer, setup.max_length
        names = setup.metrics or list(DEFAULTS["tokens"])
        width = vocabulary(tokenizer)
        check(names, "tokens", width)
        if setup.label_names:
            raise UserError("names are for classes, and a language model has none. Leave them out.", key="labels")
        form = self._form(splits)
        if form != "messages":
            check_texts(splits, FORMS[form])
        if max_length is not None and max_length < 2:
            raise UserError("a token is predicted from those before it: wanted at least 2.", key="max_length")
        encoder = _Encoder(tokenizer, max_length, form, self._is_packed(form, tokenizer, max_length))
        encoder.check(splits)
        tokenised = {name: _tokenise(split, name, encoder) for name, split in splits.items()}
        return Prepared(
            train=tokenised["train"],
            eval=by_length(tokenised["eval"]),
            head=Head(self.auto_class),
            layout=TokenRows(shift=True, classes=width),
            collator=PadTokens(pad_token_id(tokenizer)),
            metrics=no_logits,
            metric_names=tuple(names),
            label_names=None,
            labelled=True,
            summary=perplexity,
        )

    def _form(self, splits: Mapping[str, Dataset]) -> Form:
        """Return what the examples are, from the columns that all splits have."""
        common = set.intersection(*(set(split.column_names) for split in splits.values()))
        found = [form for form, roles in FORMS.items() if common.issuperset(roles)]
        if self.examples is not None:
            if self.examples not in found:
                wanted = " and ".join(f"'{role}'" for role in FORMS[self.examples])
                raise UserError(
                    f"both splits need a column for {wanted}. Say which: columns: {{{FORMS[self.examples][0]}: ...}}.",
                    key="columns",
                )
            return self.examples
        if len(found) == 1:
            return found[0]
        if found:
            raise UserError(
                f"the columns make examples of several kinds: {', '.join(found)}. Say which to learn from: "
                f"task: {{name: {self.name}, examples: {found[0]}}}.",
                key="columns",
            )
        raise UserError(
            "nothing to learn from. Wanted, in both splits, a column 'text', or 'prompt' and 'completion', or "
            "'messages'. Say which it is: columns: {text: ...}.",
            key="columns",
        )

    def _is_packed(self, form: Form, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> bool:
        if not self.packed:
            return False
        if form != "text":
            raise UserError(
                f"only plain text can be packed: a block may begin in the middle of one, and a {form.rstrip('s')} "
                "without its beginning teaches something else. Leave out task.packed.",
                key="columns",
            )
        if max_length is None:
            raise UserError("packed blocks need a length, and the models set none: max_length: 1024.", key="max_length")
        if tokenizer.eos_token_id is None:
            raise UserError("the tokenizer has no end of text to put between packed texts. Leave out task.packed.")
        return True


# ---- Tokens ----------------------------------------------------------------------------------------------------------


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
class _Encoder:
    """Makes tokens of raw examples.

    Attributes:
        tokenizer: Of both models.
        max_length: Longest example.
        form: What the examples are.
        packed: Whether they become blocks.
    """

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


def _tokenise(split: Dataset, name: str, encoder: _Encoder) -> Dataset:
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

    settings = (TextGeneration.name, encoder.max_length, encoder.form, encoder.packed)
    features = token_features("cut", "merged")
    tokenised = tokenise(split, name, encode, encoder.tokenizer, *settings, features=features)
    _say(split, name, tokenised, encoder)
    return tokenised.remove_columns(["cut", "merged"])


def _say(split: Dataset, name: str, tokenised: Dataset, encoder: _Encoder) -> None:
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
