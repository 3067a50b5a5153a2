"""Opening a pair of models: configurations and tokenizers, no weights; do they fit each other?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hf_distill.errors import UserError
from hf_distill.models import has_head, open_tokenizer

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from hf_distill.recipe import Recipe

# Positions of these models start after the padding index, so two of them hold no token.
_OFFSET_POSITIONS = ("roberta", "xlm-roberta", "camembert", "mpnet", "longformer", "xlm-roberta-xl", "data2vec-text")


@dataclass(frozen=True)
class Pair:
    """Teacher and student before any weight is loaded.

    Attributes:
        teacher: Configuration.
        student: Configuration.
        tokenizer: Feeds both.
        teacher_head: The teacher's configuration where it brings the task's head, else None.
        student_head: Likewise.
        max_length: Longest input both take and the recipe wants; None where nothing limits it.
    """

    teacher: PretrainedConfig
    student: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase
    teacher_head: PretrainedConfig | None
    student_head: PretrainedConfig | None
    max_length: int | None


def open_pair(recipe: Recipe) -> Pair:
    """Open both configurations and the tokenizer, and check that one can teach the other.

    Raises:
        UserError: A model is not there, the vocabularies differ, or the wanted length is beyond what a model takes.
    """
    with recipe.locate("teacher"):
        teacher = recipe.teacher.config()
    with recipe.locate("student"):
        student = recipe.student.config(teacher)
        own = recipe.student.own_config()
    with recipe.locate(""):
        tokenizer = _tokenizer(recipe)
    for side, config in (("teacher", teacher), ("student", student)):
        with recipe.locate(side):
            _check_vocabulary(tokenizer, config)
    with recipe.locate("data"):
        limit = _longest_input(recipe, tokenizer, (teacher, student))
    return Pair(
        teacher=teacher,
        student=student,
        tokenizer=tokenizer,
        teacher_head=teacher if recipe.teacher.has_head else None,
        student_head=own if own is not None and has_head(own, recipe.task.auto_class) else None,
        max_length=limit,
    )


def _tokenizer(recipe: Recipe) -> PreTrainedTokenizerBase:
    """Open the tokenizer of the run; refuse two models that number their tokens differently."""
    sources = {"student": recipe.student.source, "teacher": recipe.teacher.source}
    named = {side: source for side, source in sources.items() if source is not None}
    opened: dict[str, PreTrainedTokenizerBase] = {}
    if recipe.tokenizer is not None:
        opened["tokenizer"] = open_tokenizer(recipe.tokenizer, key="tokenizer")
    for side, source in named.items():
        try:
            opened[side] = open_tokenizer(source, key=f"{side}.model")
        except UserError:
            # Weights saved without their tokenizer are fine as long as somebody names one.
            if not opened and side == list(named)[-1]:
                raise
    first = next(iter(opened))
    for side, tokenizer in opened.items():
        if tokenizer.get_vocab() != opened[first].get_vocab():
            raise UserError(
                f"the vocabularies of {first} and {side} differ ({_describe(opened[first])} and {_describe(tokenizer)}), so "
                "the same text would reach the models as different tokens and one batch cannot feed both. Choose a student "
                "of the teacher's family, or student: {name: copy_layers, ...}.",
                key=f"{side}.model" if side in named else side,
            )
    tokenizer = opened[first]
    if tokenizer.pad_token is None:
        # Decoders come without one. Padding is masked, so any token does; the end of text is the custom.
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _describe(tokenizer: PreTrainedTokenizerBase) -> str:
    return f"{len(tokenizer)} tokens of {type(tokenizer).__name__}"


def _check_vocabulary(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig) -> None:
    rows: int = config.get_text_config().vocab_size
    highest = max(tokenizer.get_vocab().values())
    if highest >= rows:
        raise UserError(
            f"the tokenizer has a token number {highest}, but the model's vocabulary ends at {rows - 1}. "
            "Name the tokenizer that belongs to the model.",
            key="model",
        )


def _longest_input(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, configs: tuple[PretrainedConfig, ...]
) -> int | None:
    limits = []
    for config in configs:
        positions = getattr(config.get_text_config(), "max_position_embeddings", None)
        if isinstance(positions, int) and positions > 0:
            offset = (config.pad_token_id or 0) + 1 if config.model_type in _OFFSET_POSITIONS else 0
            limits.append(positions - offset)
    wanted = recipe.data.max_length
    if limits and wanted is not None and wanted > min(limits):
        raise UserError(
            f"{wanted} tokens are more than the models take; wanted at most {min(limits)}.", key="max_length"
        )
    if wanted is not None:
        return wanted
    # A tokenizer that knows no limit says 10^30.
    limits += [tokenizer.model_max_length] if tokenizer.model_max_length < 1_000_000 else []
    return min(limits) if limits else None

