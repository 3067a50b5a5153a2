"""Says before the first step where teacher and student end a text, and read a conversation, in different ways."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from hf_distill.errors import UserError
from hf_distill.locations import resolve
from hf_distill.models.adapters import find_adapter
from hf_distill.models.loading import open_tokenizer

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from hf_distill.models.pair import Pair
    from hf_distill.recipe.recipe import Recipe

THINKING = "enable_thinking"


def ends_in_words(recipe: Recipe, pair: Pair) -> list[str]:
    """Return lines about different ends and chat templates of a teacher and a student that write; mostly none.

    Args:
        recipe: The recipe.
        pair: Its models.
    """
    student, (_, teacher) = recipe.student, next(iter(recipe.teacher.members()))
    if (line := _endless(recipe, pair)) is not None:
        return [line]
    # A student that is made from its teacher ends texts as it does, and reads with its tokenizer.
    if not recipe.task.writes or student.source is None or teacher.source is None or pair.own_tokens:
        return []
    lines = _ends(recipe, pair, str(student.source), str(teacher.source))
    if recipe.completions.by != "data" and recipe.tokenizer is None:
        lines += _templates(pair.tokenizer, str(teacher.source), teacher.opening)
    return lines


def _endless(recipe: Recipe, pair: Pair) -> str | None:
    """Return a line about a student that writes in training and has nothing that ends a text; None if it has."""
    if not recipe.completions.in_training or pair.tokenizer.eos_token_id is not None:
        return None
    source = recipe.student.source
    if source is None or ends_of(pair.student, str(source)):
        return None
    return (
        "the student cannot end a text: neither its model nor its tokenizer has an eos_token_id, so that every "
        "completion runs on to max_new_tokens. Set eos_token_id in the student's generation_config.json"
    )


def _ends(recipe: Recipe, pair: Pair, student: str, teacher: str) -> list[str]:
    own, its = ends_of(pair.student, student), ends_of(pair.teacher, teacher)
    if not (missing := its - own) or (not own and pair.tokenizer.eos_token_id in its):
        return []
    names = _named(pair.tokenizer, missing)
    only = f"only at {_named(pair.tokenizer, own)}" if own else "nowhere (no eos_token_id)"
    what = (
        "an end that it learns from the teacher does not stop it, and its completions run on to max_new_tokens"
        if recipe.completions.in_training
        else f"it learns to write {names} and does not stop there"
    )
    return [
        f"the teacher ends a text at {_named(pair.tokenizer, its)}, the student stops {only}: {what}. Set eos_token_id "
        f"in the student's generation_config.json to {sorted(own | its)}, or name two models of one kind (both "
        "instruction-tuned, or both not)"
    ]


def ends_of(config: PretrainedConfig, source: str) -> set[int]:
    """Return the ids that end a text, as the `generation_config.json` of a model says, else its configuration."""
    from transformers import GenerationConfig

    adapter = find_adapter(source)
    found: Any = None
    try:
        found = GenerationConfig.from_pretrained(resolve(source if adapter is None else str(adapter.base))).eos_token_id
    except (OSError, ValueError, UserError):  # a model without the file
        found = None
    if found is None:
        found = getattr(config.get_text_config(), "eos_token_id", None)
    return set() if found is None else set(found) if isinstance(found, Iterable) else {int(found)}


def _named(tokenizer: PreTrainedTokenizerBase, ids: Iterable[int]) -> str:
    return ", ".join(f"{tokenizer.convert_ids_to_tokens(number)} ({number})" for number in sorted(ids))


def _templates(tokenizer: PreTrainedTokenizerBase, teacher: str, opening: dict[str, Any]) -> Iterator[str]:
    try:
        its = open_tokenizer(teacher, **opening).chat_template
    except UserError:  # told where tokenizers are compared
        return
    own = tokenizer.chat_template
    if its is None or own is None or its == own:
        return
    switches = [THINKING in str(template) for template in (its, own)]
    more = ""
    if switches[0] != switches[1]:
        with_, without = ("teacher", "student") if switches[0] else ("student", "teacher")
        more = f" (that of the {with_} has the switch {THINKING}, that of the {without} has not)"
    yield (
        f"teacher and student have different chat templates{more}: conversations are written with the student's, which "
        f"the teacher may never have seen. Use the teacher's for both with tokenizer: {teacher}"
    )
