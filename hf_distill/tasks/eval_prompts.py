"""The prompts of a language model's eval split, from which models write in an evaluation, and their references."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from hf_distill.completions.backends import TransformersBackend
from hf_distill.completions.sampling import Sampling
from hf_distill.data.example_columns import PROMPT_LENGTH
from hf_distill.data.label_names import IGNORED
from hf_distill.errors import UserError
from hf_distill.metrics.function import is_function
from hf_distill.metrics.score import check
from hf_distill.metrics.text import check_generated, takes_texts
from hf_distill.models.inspection import positions_of
from hf_distill.tasks.evaluator import LossEvaluator
from hf_distill.tasks.generation import Generator, TextEvaluator, evenly, limit

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PretrainedConfig, PreTrainedModel

    from hf_distill.tasks.base import Setup

logger = logging.getLogger(__name__)

# Tokens of a text that a model writes where no completion of the data says how many.
FEW = 64
# Tokens of a plain text that serve as prompt where the recipe does not say how many.
PROMPT_TOKENS = 32
# The draws of an evaluation are the same for all models, seeds and times.
SEED = 0


@dataclass(frozen=True)
class EvalPrompts:
    """The prompts of some rows of an eval split, with what the data has after them.

    Attributes:
        rows: Rows of the split that have one, ascending.
        ids: Token ids of each prompt, as the models read them: with the chat template, up to the turn to write.
        rest: Token ids that the data has after each; empty where it has none, or where they are cut.
    """

    rows: tuple[int, ...]
    ids: tuple[tuple[int, ...], ...]
    rest: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, split: Dataset, max_length: int | None, *, plain: int | None = None) -> EvalPrompts:
        """Return the prompts of a tokenised split.

        The prompt of a row ends where its last learned part begins: of a conversation, the last turn of the assistant.

        Args:
            split: With `input_ids`, `labels`, and `prompt_length` where completions are written by a model.
            max_length: A row of this length may be cut, so that what comes after its prompt is not used.
            plain: Of plain texts, how many tokens are the prompt; texts with no more are left out. None for other data.
        """
        found: dict[int, tuple[tuple[int, ...], tuple[int, ...]]] = {}
        lengths = split[PROMPT_LENGTH][:] if PROMPT_LENGTH in split.column_names else None
        for row, (ids, labels) in enumerate(zip(split["input_ids"], split["labels"], strict=True)):
            end = lengths[row] if lengths is not None else _last_run(labels) if plain is None else plain
            if 0 < end < len(ids) or (end and lengths is not None):
                whole = max_length is None or len(ids) < max_length
                found[row] = tuple(ids[:end]), tuple(ids[end:]) if whole else ()
        return cls(tuple(found), *(tuple(side) for side in zip(*found.values(), strict=True)) if found else ((), ()))

    def take(self, places: Sequence[int]) -> EvalPrompts:
        """Return some of them, by their place among all."""
        return EvalPrompts(
            tuple(self.rows[place] for place in places),
            tuple(self.ids[place] for place in places),
            tuple(self.rest[place] for place in places),
        )

    def fitting(self, longest: int | None) -> EvalPrompts:
        """Return those of at most so many tokens."""
        if longest is None:
            return self
        return self.take([place for place, ids in enumerate(self.ids) if len(ids) <= longest])


def _last_run(labels: Sequence[int]) -> int:
    """Return where the last run of labels begins; 0 without labels."""
    end = len(labels)
    while end and labels[end - 1] == IGNORED:
        end -= 1
    while end and labels[end - 1] != IGNORED:
        end -= 1
    return end


def longest_prompt(configs: Sequence[PretrainedConfig], new_tokens: int) -> int | None:
    """Return the longest prompt after which models have positions for so many more tokens; None without a limit."""
    limits = [limit for limit in map(positions_of, configs) if limit is not None]
    return min(limits) - new_tokens if limits else None


def evenly_fitting(
    split: Dataset, number: int, new_tokens: int, configs: Sequence[PretrainedConfig], prompt_tokens: int | None = None
) -> EvalPrompts:
    """Return up to `number` prompts of an eval split, of all lengths; the same each time.

    Args:
        split: The tokenised eval split.
        number: How many.
        new_tokens: How many tokens a model writes after each.
        configs: Of the models, which may have no positions for more.
        prompt_tokens: Of plain texts, how many tokens are the prompt. Default: 32.
    """
    some = split.select(evenly(4 * number, len(split)))  # of which some may not fit
    found = EvalPrompts.of(some, None)
    if all(len(ids) <= 1 for ids in found.ids):  # plain texts are learned from their second token on
        found = EvalPrompts.of(some, None, plain=prompt_tokens or PROMPT_TOKENS)
    found = found.fitting(longest_prompt(configs, new_tokens))
    return found.take(evenly(number, len(found.rows)))


@dataclass(frozen=True)
class PromptGenerator(Generator):
    """Writes after the prompts of an eval split with a causal language model.

    Attributes:
        written: The prompts of `rows`.
        sampling: How tokens are drawn; greedy unless the recipe says otherwise.
        longest: Number of tokens of the longest reference of the split.
    """

    written: EvalPrompts
    sampling: Sampling
    longest: int = 0

    @property
    def how(self) -> str:
        """Temperature and largest number of tokens."""
        return f"temperature {self.sampling.temperature:g}, {limit(self.sampling.max_new_tokens, self.longest)}"

    @cached_property
    def references(self) -> list[str | None]:
        """What the data has after each prompt, without special tokens and spaces around it; None for nothing."""
        texts = self._decoded(self.written.rest)
        return [text if rest else None for text, rest in zip(texts, self.written.rest, strict=True)]

    @cached_property
    def prompts(self) -> list[str]:
        """The prompts, without special tokens."""
        return self._decoded(self.written.ids)

    def _decoded(self, ids: Sequence[Sequence[int]]) -> list[str]:
        texts = self.tokenizer.batch_decode([list(one) for one in ids], skip_special_tokens=True)
        return [text.strip() for text in texts]

    def _texts(self, model: PreTrainedModel, rows: Sequence[int], batch_size: int) -> Sequence[str]:
        if not rows:
            return []
        ids = dict(zip(self.rows, self.written.ids, strict=True))
        writer = TransformersBackend(batch_size=batch_size).open(model, self.tokenizer)
        made = writer.write([ids[row] for row in rows], self.sampling, SEED)
        return self._decoded([one.ids for one in made])


def check_written(names: Sequence[str], width: int, *, plain: bool) -> None:
    """Refuse metrics of generated texts that cannot be computed, before anything is tokenised.

    Args:
        names: The metrics.
        width: Number of tokens of the vocabulary.
        plain: Whether the data are plain texts, of which no part is a completion.

    Raises:
        UserError: There is one.
    """
    wanted = [name for name in names if takes_texts(name)]
    if wanted and plain:
        raise UserError(
            f"{wanted[0]} compares texts that the models write after a prompt, and plain texts have none. Wanted "
            "columns 'prompt' and 'completion', or 'messages'; or perplexity.",
            key="metrics",
        )
    check(wanted, "texts", width)


def evaluator_for(split: Dataset, names: Sequence[str], width: int, setup: Setup) -> LossEvaluator:
    """Return what evaluates a causal language model on a tokenised eval split.

    Args:
        split: The eval split.
        names: The metrics.
        width: Number of tokens of the vocabulary.
        setup: The models, and what the recipe says of the evaluation.

    Raises:
        UserError: A metric needs generated texts, and the data has no references, or no room after its prompts.
    """
    wanted = [name for name in names if takes_texts(name)]
    if not wanted:
        return LossEvaluator(tuple(names), width)
    every = EvalPrompts.of(split, setup.max_length)
    referred = [place for place, rest in enumerate(every.rest) if rest]
    if not referred and not all(map(is_function, wanted)):
        raise UserError(
            f"{next(name for name in wanted if not is_function(name))} compares texts with those of the data, and the "
            "eval split has prompts alone, or no completion that is not cut. Wanted an eval split with completions, or "
            "a function of yours, module:function.",
            key="metrics",
        )
    known = every.take(referred) if referred else every
    tokens = new_tokens(setup, known)
    fit = known.fitting(longest_prompt(setup.configs, tokens))
    if not fit.rows:
        raise UserError(
            f"no prompt of the eval split leaves room for {tokens} tokens more. Wanted fewer.", key="max_new_tokens"
        )
    chosen = fit.take(evenly(setup.evaluation.generate_rows or len(fit.rows), len(fit.rows)))
    if (left := len(split) - len(fit.rows)) > 0:
        logger.info(
            "%s of %s rows of the eval split are left out of metrics of generated texts: their completion is cut, they "
            "have none, or there is no room after their prompt",
            *(f"{left:,}", f"{len(split):,}"),
        )
    sampling = Sampling(tokens, setup.evaluation.temperature)
    longest = max(map(len, known.rest), default=0)
    generator = PromptGenerator(split, setup.tokenizer, chosen.rows, chosen, sampling, longest)
    references: list[Any] = generator.references
    check_generated(names, references, generator.prompts)
    return TextEvaluator(tuple(names), width, generator)


def new_tokens(setup: Setup, prompts: EvalPrompts) -> int:
    """Return how many tokens a model writes at most in an evaluation; see `Evaluation.max_new_tokens`."""
    if setup.evaluation.max_new_tokens is not None:
        return setup.evaluation.max_new_tokens
    if setup.completions.by != "data":
        return setup.completions.max_new_tokens
    return max((len(rest) for rest in prompts.rest), default=0) or FEW
