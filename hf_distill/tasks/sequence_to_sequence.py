"""Summarization and translation with encoder-decoder models: one task under two pipeline tags."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from hf_distill.component import component
from hf_distill.data import by_length, column
from hf_distill.data.example_columns import held
from hf_distill.errors import UserError
from hf_distill.metrics.table import DEFAULTS
from hf_distill.models.decoders import decoder_positions
from hf_distill.models.loading import Head
from hf_distill.models.tokenizers import NO_LIMIT
from hf_distill.tasks.base import Prepared, Setup, Task
from hf_distill.tasks.evaluator import LossEvaluator
from hf_distill.tasks.generation import REFERENCE, SourceGenerator, TextEvaluator, evenly
from hf_distill.tasks.language import among, check_shared, check_texts, pad_token_id, vocabulary
from hf_distill.tasks.pair_tokens import PadPairs, PairEncoder, beginning

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

Size = Annotated[int, Field(gt=0)]


@component
class SequenceToSequence(Task):
    """An encoder reads a source, and a decoder writes a target, token by token.

    Every token of the target is learned, its end included, given all tokens before it (teacher forcing). Models are
    evaluated by the texts that they generate. All use the same number of beams and the same maximum length. For the
    rest (minimum length, phrases that may not be repeated, first token) each uses its own `generation_config`.

    Attributes:
        prefix: Text put before every source. T5 expects one: `"summarize: "`, `"translate English to German: "`.
        max_target_length: Maximum length of a target in tokens; longer ones are truncated, and a warning counts them.
            Default: the longest that both decoders and the tokenizer take.
        num_beams: Beams of the texts generated in evaluation; 1 is greedy.
        max_new_tokens: Maximum length of a generated text in tokens. Default: the longest target of the eval split.
    """

    auto_class: ClassVar[str] = "AutoModelForSeq2SeqLM"
    groups_by_length: ClassVar[bool] = True
    source_role: ClassVar[str]
    no_transfer: ClassVar[str] = (
        "the models are compared on the tokens of a target, each given those before it. Let the teacher write the "
        "targets (`generate`), and add the pairs to the train split: path: {train: [FILE, WRITTEN BY THE TEACHER]}."
    )
    # Metrics if the recipe names none.
    own_metrics: ClassVar[tuple[str, ...]] = tuple(DEFAULTS["texts"])

    prefix: str = ""
    max_target_length: Size | None = None
    num_beams: Size = 1
    max_new_tokens: Size | None = None

    def prepare(self, splits: Mapping[str, Dataset], setup: Setup) -> Prepared:
        """Return the tokenised sources and targets."""
        from hf_distill.metrics.score import check
        from hf_distill.metrics.text import check_generated, takes_texts
        from hf_distill.rows.tokens import TargetRows

        tokenizer, width = setup.tokenizer, vocabulary(setup.tokenizer)
        names = setup.metrics or list(self.own_metrics)
        check(names, "texts", width)
        for key in ("max_new_tokens", "temperature"):
            if getattr(setup.evaluation, key):
                raise UserError(f"for causal language models. For {self.name}, task has max_new_tokens.", key=key)
        if setup.label_names:
            raise UserError("names are for classes, and a text is not a class. Leave them out.", key="labels")
        splits = {name: self._columns(split) for name, split in splits.items()}
        roles = (self.source_role, self.label_role)
        check_texts(splits, roles)
        begins = beginning(tokenizer, setup.configs, self._set_languages(tokenizer))
        limits = (setup.max_length, self._target_limit(setup))
        encoder = PairEncoder(self.name, roles, self.prefix, tokenizer, *limits)
        tokenised = {name: encoder.tokenise(split, name) for name, split in splits.items()}
        eval_split = by_length(tokenised["eval"])
        check_generated(names, eval_split[REFERENCE][:])
        settings = {**self._lengths(eval_split), **begins.settings}
        check_shared(tokenised, setup)
        padding = pad_token_id(tokenizer, setup.left_out)
        evaluator = LossEvaluator(tuple(names), width)
        if any(map(takes_texts, names)):
            rows = evenly(setup.evaluation.generate_rows or len(eval_split), len(eval_split))
            generator = SourceGenerator(eval_split, tokenizer, rows, padding, settings, _longest(eval_split))
            evaluator = TextEvaluator(tuple(names), width, generator)
        return Prepared(
            train=tokenised["train"],
            eval=eval_split,
            head=Head(self.auto_class),
            layout=TargetRows(classes=width, left_out=among(setup.left_out, width)),
            collator=PadPairs(padding, begins.token),
            evaluator=evaluator,
            label_names=None,
            labelled=True,
        )

    def _columns(self, split: Dataset) -> Dataset:
        """Return a split with a column of sources and a column of targets."""
        return split

    def _set_languages(self, tokenizer: PreTrainedTokenizerBase) -> int | None:
        """Set the languages of a multilingual tokenizer and return the id of the target language's token; else None."""
        if hasattr(tokenizer, "src_lang"):
            raise UserError(
                f"{type(tokenizer).__name__} is a tokenizer of many languages, but {self.name} cannot choose one of "
                "them; translation can. Name models of one language.",
                key="task",
            )
        return None

    def _target_limit(self, setup: Setup) -> int | None:
        limits = [limit for limit in map(decoder_positions, setup.configs) if limit is not None]
        wanted, added = self.max_target_length, setup.tokenizer.num_special_tokens_to_add()
        # Without this check a model would fail with an index out of range; for `max_new_tokens` only after training.
        for key, tokens in (("max_target_length", wanted), ("max_new_tokens", self.max_new_tokens)):
            if limits and tokens is not None and tokens > min(limits):
                raise UserError(
                    f"{tokens} tokens are more than the decoders can take; wanted at most {min(limits)}.",
                    key=f"task.{key}",
                )
        if wanted is not None and wanted <= added:
            raise UserError(
                f"{wanted} tokens leave no room for text: the tokenizer adds {added} of its own. Wanted more.",
                key="task.max_target_length",
            )
        if wanted is None and setup.tokenizer.model_max_length < NO_LIMIT:
            limits.append(setup.tokenizer.model_max_length)
        return wanted if wanted is not None else min(limits, default=None)

    def _lengths(self, eval_split: Dataset) -> dict[str, int]:
        return {"num_beams": self.num_beams, "max_new_tokens": self.max_new_tokens or _longest(eval_split)}


def _longest(split: Dataset) -> int:
    """Return the number of tokens of the longest target."""
    import pyarrow.compute as pc  # type: ignore[import-untyped]

    found: int = pc.max(pc.list_value_length(column(split, "labels"))).as_py()
    return found


@component
class Summarization(SequenceToSequence):
    """Write a short text from a long one (encoder-decoder models)."""

    name: ClassVar[str] = "summarization"
    roles: ClassVar[Mapping[str, bool]] = {"text": True, "summary": True}
    source_role: ClassVar[str] = "text"
    label_role: ClassVar[str] = "summary"


@component
class Translation(SequenceToSequence):
    """Translate texts (encoder-decoder models).

    Attributes:
        languages: Keys of source and target in a column `translation`, the usual form on the Hub: `[en, de]`. Default:
            none.
        source_language: Source language, for models of many languages (mBART, M2M100, NLLB), as their tokenizer calls
            it: `eng_Latn`. Default: none.
        target_language: Target language, for models of many languages: `deu_Latn`. Default: none.
    """

    name: ClassVar[str] = "translation"
    roles: ClassVar[Mapping[str, bool]] = {"source": False, "target": False, "translation": False}
    source_role: ClassVar[str] = "source"
    label_role: ClassVar[str] = "target"
    own_metrics: ClassVar[tuple[str, ...]] = ("bleu", "chrf", "perplexity")

    languages: tuple[str, str] | None = None
    source_language: str | None = None
    target_language: str | None = None

    def _columns(self, split: Dataset) -> Dataset:
        found, pair = split.column_names, (self.source_role, self.label_role)
        if self.languages is None and set(pair) <= set(found):
            return split.select_columns([*pair, *held(split)])
        if "translation" not in found or self.languages is None:
            raise UserError(
                "nothing to translate. Wanted, in both splits, a column 'source' and a column 'target' (columns: "
                "{source: ..., target: ...}), or a column 'translation' and task: {name: translation, languages: [en, "
                "de]}.",
                key="columns",
            )
        flat = split.select_columns(["translation", *held(split)]).flatten()
        keys = [name.partition(".")[2] for name in flat.column_names if name not in held(split)]
        for language in self.languages:
            if language not in keys:
                raise UserError(
                    f"'{language}' is not a key of the column 'translation'; found {', '.join(keys)}.",
                    key="task.languages",
                )
        renamed = {f"translation.{language}": role for language, role in zip(self.languages, pair, strict=True)}
        return flat.select_columns([*renamed, *held(split)]).rename_columns(renamed)

    def _set_languages(self, tokenizer: PreTrainedTokenizerBase) -> int | None:
        wanted = {"src_lang": self.source_language, "tgt_lang": self.target_language}
        many = hasattr(tokenizer, "src_lang")
        if not many and any(wanted.values()):
            raise UserError(
                f"{type(tokenizer).__name__} is not a tokenizer of many languages. Leave them out.",
                key="task.source_language",
            )
        if not many:
            return None
        if not all(wanted.values()):
            raise UserError(
                f"{type(tokenizer).__name__} is a tokenizer of many languages. Name the two: task: {{name: "
                "translation, source_language: ..., target_language: ...}.",
                key="task",
            )
        _language_token(tokenizer, str(self.source_language), "task.source_language")
        written = _language_token(tokenizer, str(self.target_language), "task.target_language")
        for key, language in wanted.items():
            setattr(tokenizer, key, language)
        return written


def _language_token(tokenizer: PreTrainedTokenizerBase, language: str, key: str) -> int:
    for token in (language, f"__{language}__"):  # NLLB and mBART; M2M100
        number: Any = tokenizer.convert_tokens_to_ids(token)
        if number is not None and number != tokenizer.unk_token_id:
            return int(number)
    raise UserError(f"{type(tokenizer).__name__} does not know the language '{language}'.", key=key)
