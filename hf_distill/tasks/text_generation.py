"""Text generation: causal language models on plain text, on completions of prompts, or on conversations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from hf_distill.component import component
from hf_distill.data import by_length, column
from hf_distill.data.example_columns import EXAMPLE_ROLES
from hf_distill.data.labelled import has_label
from hf_distill.data.two_tokenizers import teacher_view
from hf_distill.errors import UserError
from hf_distill.models.loading import Head
from hf_distill.models.outline import has_class
from hf_distill.tasks.aligned_texts import AlignedTexts, with_teacher
from hf_distill.tasks.base import Prepared, Setup, Task
from hf_distill.tasks.eval_prompts import check_written, evaluator_for
from hf_distill.tasks.language import (
    PadTokens,
    among,
    check_shared,
    check_texts,
    pad_token_id,
    vocabulary,
)
from hf_distill.tasks.text_prompts import PROMPT_FORMS, PromptEncoder, check_ids, check_share
from hf_distill.tasks.text_tokens import (
    COMPLETION_IDS,
    FORMS,
    PROMPT_IDS,
    WRITTEN_BY,
    Form,
    TextEncoder,
    tokenise_split,
)

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

# Number of rows of large data that `--check` reads.
LOOKED_AT = 200


@component
class TextGeneration(Task):
    """Predict every token from those before it (causal language models).

    Plain text is learned whole; of a prompt and its completion, the completion; of a conversation, what the assistant
    said, with the end of its turn. Texts and completions end with the tokenizer's end of text.

    Where a model writes the completions (section `completions`), prompts alone are enough.

    Attributes:
        packing: Join plain texts and cut them into blocks of `data.max_length` tokens; the last may be shorter. Blocks
            have no padding, and nothing is truncated. Attention sees the earlier texts of a block, as in the
            pre-training of GPT models. The first token of each text is not learned.
        examples: Which columns to learn from, if the data has several kinds: `text`, `completion` (with `prompt`) or
            `messages`. Default: read from the columns.
        chat_template_kwargs: Extra arguments for the chat template, such as `{enable_thinking: false}`. A column of
            this name adds to them row by row.
        alignment: With a teacher that has a tokenizer of its own, which rows are compared. `strict`: where one token of
            each model is the same text. `prefix`: at every place where a token of each begins, but for white space; a
            token that the student does not have counts for its longest one with which it begins.
        min_coverage: With a teacher that has a tokenizer of its own: smallest share of the tokens to learn that have to
            be one token of the teacher too, as only these are compared. Less is refused.
    """

    name: ClassVar[str] = "text-generation"
    auto_class: ClassVar[str] = "AutoModelForCausalLM"
    roles: ClassVar[Mapping[str, bool]] = dict.fromkeys(
        (
            *("text", "prompt", "completion", "messages", "conversations", "tools", "chat_template_kwargs"),
            *(PROMPT_IDS, COMPLETION_IDS, WRITTEN_BY),
        ),
        False,
    )

    compares_tokens: ClassVar[bool] = True
    writes: ClassVar[bool] = True
    aligns_tokens: ClassVar[bool] = True

    packing: bool = False
    examples: Form | None = None
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    alignment: Literal["strict", "prefix"] = "strict"
    min_coverage: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5

    def check_model(self, config: PretrainedConfig) -> None:
        """Refuse encoder-decoder models, and encoders, which see the tokens that they should predict."""
        if config.is_encoder_decoder:
            raise UserError(
                f"a {config.model_type} model reads with an encoder and writes with a decoder. Wanted one that "
                "continues a text (GPT-2, Llama, ...); or task: summarization or translation.",
                key="model",
            )
        # Encoders have a causal class too, but without `is_decoder` it attends to later tokens.
        if has_class(config, "AutoModelForMaskedLM") and not getattr(config, "is_decoder", False):
            raise UserError(
                f"a {config.model_type} model sees the words after the one that it predicts. Wanted one that sees only "
                "those before it (GPT-2, Llama, ...); or task: fill-mask.",
                key="model",
            )

    def prepare(self, splits: Mapping[str, Dataset], setup: Setup) -> Prepared:
        """Return the tokenised examples, with the tokens to learn as labels."""
        from hf_distill.metrics.score import check
        from hf_distill.metrics.table import DEFAULTS
        from hf_distill.metrics.text import takes_texts
        from hf_distill.rows.tokens import TokenRows

        tokenizer = setup.tokenizer
        names = setup.metrics or list(DEFAULTS["tokens"])
        width = vocabulary(tokenizer)
        check([name for name in names if not takes_texts(name)], "tokens", width)
        if setup.label_names:
            raise UserError("names are for classes, and a language model has none. Leave them out.", key="labels")
        splits, encoder = self._encoder(splits, setup)
        check_written(names, width, plain=encoder.form == "text" and setup.completing is None)
        prefix = self.alignment == "prefix"
        beside = None if setup.teacher_tokenizer is None else AlignedTexts.of(encoder, setup, prefix=prefix)
        tokenised = {name: tokenise_split(split, name, encoder, beside) for name, split in splits.items()}
        if setup.completing is not None:
            check_share(tokenised["train"], setup.completing.share)
        check_shared(tokenised, setup)
        eval_split = by_length(tokenised["eval"])
        prepared = Prepared(
            train=tokenised["train"],
            eval=eval_split,
            head=Head(self.auto_class),
            layout=TokenRows(shift=True, classes=width, left_out=among(setup.left_out, width)),
            collator=PadTokens(pad_token_id(tokenizer, setup.left_out)),
            evaluator=evaluator_for(eval_split, names, width, setup),
            label_names=None,
            labelled=bool(has_label(tokenised["train"]).any()),
        )
        if beside is None or setup.teacher_tokenizer is None:
            return prepared
        own, columns = replace(setup, tokenizer=setup.teacher_tokenizer), vocabulary(setup.teacher_tokenizer)
        theirs = evaluator_for(teacher_view(eval_split), names, columns, own)
        return with_teacher(prepared, beside, theirs, self.min_coverage)

    def look(self, splits: Mapping[str, Dataset], setup: Setup) -> None:
        """Check the first rows as `prepare` does all rows; there are no classes to count."""
        splits, encoder = self._encoder(splits, setup)
        for name, split in splits.items():
            first = split.select(range(min(len(split), LOOKED_AT)))
            made = encoder(first[:], range(len(first)), name)
            if setup.teacher_tokenizer is not None:
                AlignedTexts.of(encoder, setup, prefix=self.alignment == "prefix").look(
                    first[:], range(len(first)), name, made, self.min_coverage
                )

    def _encoder(self, splits: Mapping[str, Dataset], setup: Setup) -> tuple[dict[str, Dataset], TextEncoder]:
        """Return the splits with columns named by role, and the encoder that tokenises them."""
        tokenizer, max_length = setup.tokenizer, setup.max_length
        named = {name: _named(split) for name, split in splits.items()}
        form = self._form(named, setup.completing is not None)
        chat = form == "messages" or (form == "completion" and _are_chats(named))
        if max_length is not None and max_length < 2:
            raise UserError("a token is predicted from the tokens before it: wanted at least 2.", key="max_length")
        packing = self._packs(form, tokenizer, max_length)
        if packing:
            _check_examples(named)
        if form == "completion" and not chat:
            check_ids(named, tokenizer)
        settings = (self.name, tokenizer, max_length, form, packing, chat, self.chat_template_kwargs)
        if (own := setup.completing) is not None:
            encoder: TextEncoder = PromptEncoder(*settings, own.max_new_tokens, own.prompt_tokens)
        else:
            if not chat:
                check_texts(named, FORMS[form])
            encoder = TextEncoder(*settings)
        encoder.check(named)
        return named, encoder

    def _form(self, splits: Mapping[str, Dataset], completes: bool) -> Form:
        """Return the form of the examples, from the columns that all splits have.

        Args:
            splits: The splits, with columns named by role.
            completes: Whether a model writes the completions, so that a prompt needs none.
        """
        forms = PROMPT_FORMS if completes else FORMS
        common = set.intersection(*(set(split.column_names) for split in splits.values()))
        found = [form for form, roles in forms.items() if common.issuperset(roles)]
        if self.examples is not None:
            if self.examples not in found:
                wanted = " and ".join(f"'{role}'" for role in forms[self.examples])
                raise UserError(
                    f"both splits need a column for {wanted}. Name it: columns: {{{forms[self.examples][0]}: ...}}.",
                    key="columns",
                )
            return self.examples
        if "completion" in found and common.issuperset((PROMPT_IDS, COMPLETION_IDS)):
            return "completion"  # as `hf-distill generate` writes them, beside the same as conversations
        if len(found) == 1:
            return found[0]
        if found:
            raise UserError(
                f"the columns make examples of several kinds: {', '.join(found)}. Choose one: "
                f"task: {{name: {self.name}, examples: {found[0]}}}.",
                key="columns",
            )
        if "prompt" in common:
            raise UserError(
                "there are prompts, and no completions to learn. Name the column: columns: {completion: ...}; or let a "
                "model write them: completions: {by: student}.",
                key="columns",
            )
        raise UserError(
            "nothing to learn from. Wanted, in both splits, a column 'text', or 'prompt' and 'completion', or "
            "'messages'. Name it: columns: {text: ...}.",
            key="columns",
        )

    def _packs(self, form: Form, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> bool:
        if not self.packing:
            return False
        if form != "text":
            raise UserError(
                f"only plain text can be packed: a block may begin in the middle of an example, and a "
                f"{form.rstrip('s')} without its beginning means something else. Leave out task.packing.",
                key="columns",
            )
        if max_length is None:
            raise UserError(
                "packed blocks need a length, but the models have no maximum. Set one, such as max_length: 1024.",
                key="max_length",
            )
        if tokenizer.eos_token_id is None:
            raise UserError("the tokenizer has no end of text to put between packed texts. Leave out task.packing.")
        return True


def _named(split: Dataset) -> Dataset:
    """Return the split with a column `conversations` renamed to `messages`."""
    if "conversations" in split.column_names and "messages" not in split.column_names:
        return split.rename_column("conversations", "messages")
    return split


def _check_examples(splits: Mapping[str, Dataset]) -> None:
    """Refuse groups and weights of texts that are packed."""
    for role, name in EXAMPLE_ROLES.items():
        if any(name in split.column_names for split in splits.values()):
            raise UserError(
                f"a packed block joins several texts, so it has no {role} of its own. Leave out task.packing, or this "
                "column.",
                key=f"columns.{role}",
            )


def _are_chats(splits: Mapping[str, Dataset]) -> bool:
    """Whether prompts or completions are lists of messages."""
    types = [
        str(column(split, role).type)
        for split in splits.values()
        for role in FORMS["completion"]
        if role in split.column_names
    ]
    return any(kind.startswith(("list", "large_list", "extension")) for kind in types)
