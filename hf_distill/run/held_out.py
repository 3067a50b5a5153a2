"""Which held-out prompts the models of a run write after, and how tokens are drawn there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hf_distill.completions.sampling import Sampling
from hf_distill.tasks.eval_prompts import FEW, SEED, EvalPrompts, evenly_fitting
from hf_distill.tasks.generation import evenly
from hf_distill.training.samples import Sampler, SampleTexts

if TYPE_CHECKING:
    from transformers import TrainerCallback

    from hf_distill.models.pair import Pair
    from hf_distill.recipe.recipe import Recipe
    from hf_distill.tasks import Prepared

# Prompts where the recipe does not say how many.
DEFAULT = 200
# Prompts whose texts the report shows.
SHOWN = 4
# Prompts after which the teacher is timed with the student as draft.
SPECULATED = 8


def own_samples_of(recipe: Recipe) -> int:
    """Return the number of prompts of own samples that a recipe asks for; by default some where a student writes."""
    asked = recipe.evaluation.own_samples
    return asked if asked is not None else DEFAULT if recipe.completions.in_training else 0


def prompts_for(recipe: Recipe, prepared: Prepared, pair: Pair) -> tuple[EvalPrompts, Sampling] | None:
    """Return the held-out prompts of a run, and how tokens are drawn after them; None where models write nothing.

    A model's own distribution is that at temperature 1, whatever the temperature of the training's completions.
    """
    wanted = own_samples_of(recipe) or (SPECULATED if recipe.evaluation.speculative else 0)
    if not wanted:
        return None
    evaluation, completions = recipe.evaluation, recipe.completions
    tokens = evaluation.max_new_tokens or (completions.max_new_tokens if completions.by != "data" else FEW)
    configs = (pair.teacher, pair.student)
    prompts = evenly_fitting(prepared.eval, wanted, tokens, configs, completions.prompt_tokens)
    return (prompts, Sampling(tokens)) if prompts.rows else None


def sampler_of(recipe: Recipe, prepared: Prepared, pair: Pair) -> Sampler | None:
    """Return what writes after the few prompts that the report shows; None where models write nothing."""
    found = prompts_for(recipe, prepared, pair) if own_samples_of(recipe) else None
    if found is None:
        return None
    prompts, sampling = found
    some = prompts.take(evenly(SHOWN, len(prompts.rows)))
    return Sampler(some.ids, pair.tokenizer, sampling, SEED)


def sample_texts(recipe: Recipe, prepared: Prepared, pair: Pair) -> Sequence[TrainerCallback]:
    """Return the callback that lets the student write after a few prompts while it trains; none where it does not."""
    sampler = sampler_of(recipe, prepared, pair)
    return () if sampler is None else (SampleTexts(sampler),)
