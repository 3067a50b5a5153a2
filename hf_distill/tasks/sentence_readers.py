"""How teacher and student of a sentence-similarity run read a text: tokenizer, prompt, length, pooling."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from hf_distill.errors import UserError
from hf_distill.models.pooling import Encoding
from hf_distill.models.sentence_encoder import AsSentenceEncoder
from hf_distill.models.sentence_files import read_encoding
from hf_distill.tasks.text_classification import check_length

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from hf_distill.tasks.base import Setup

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reader:
    """How a model reads a text.

    Attributes:
        tokenizer: Makes its tokens.
        max_length: Where texts are cut, prompt and all; None where nothing limits them.
        prompt: What stands before every text.
        skipped: How many tokens at the start of every text take no part in its vector.
        adapt: Makes a sentence encoder of the model.
    """

    tokenizer: PreTrainedTokenizerBase
    max_length: int | None
    prompt: str
    skipped: int
    adapt: AsSentenceEncoder

    def reads_like(self, other: Reader) -> bool:
        """Whether both make the same tokens of a text, of which the same count."""
        return self.tokenizer is other.tokenizer and self.prompt == other.prompt


def readers(setup: Setup, pooling: Literal["mean", "cls"] | None) -> tuple[Reader, Reader]:
    """Return how student and teacher read texts: as their own files say, the student else as the teacher.

    Args:
        setup: The models and what the recipe says about lengths.
        pooling: For models that do not say how they pool.

    Raises:
        UserError: A model's files say what is not done here, or a prompt leaves no room for a text.
    """
    known = setup.teacher or next(iter(setup.configs), None)
    teachers = None if known is None else read_encoding(known)
    # A student without Dense layers keeps its own width; an objective that needs the teacher's learns a projection.
    default = replace(teachers or Encoding(), dense=())
    default = default if pooling is None else replace(default, pooling=pooling)
    if setup.teacher is not None and teachers is None:
        logger.warning(
            "the teacher does not come from sentence-transformers: its vectors are the %s of its tokens",
            "first" if default.pooling == "cls" else "mean",
        )
    own = None if setup.student is None else read_encoding(setup.student)
    limit = min((one for one in (setup.max_length, default.max_length) if one is not None), default=None)
    if limit != setup.max_length:
        logger.info("texts are cut at %s tokens, as the teacher's own files say", limit)
    sides = {
        "student": (own or default, setup.tokenizer),
        "teacher": (teachers or default, setup.teacher_tokenizer or setup.tokenizer),
    }
    for side, (encoding, _) in sides.items():
        _say_prompts(side, encoding, own is not None or side == "teacher")
    student, teacher = (_reader(encoding, tokenizer, default, limit) for encoding, tokenizer in sides.values())
    return student, teacher


def _say_prompts(side: str, encoding: Encoding, own: bool) -> None:
    prompts = encoding.prompts
    if prompts.text and own:
        logger.info("the %s reads every text after its default prompt %r", side, prompts.text)
    if prompts.unused and own:
        logger.warning(
            "the %s has prompts (%s) and none by default: it reads texts as they are. To put one before every text, "
            "name it as default_prompt_name in a copy's config_sentence_transformers.json",
            *(side, ", ".join(prompts.unused)),
        )


def _reader(encoding: Encoding, tokenizer: PreTrainedTokenizerBase, default: Encoding, limit: int | None) -> Reader:
    check_length(tokenizer, limit)
    prompt = encoding.prompts.text
    count = len(tokenizer(prompt)["input_ids"]) if prompt else 0
    if limit is not None and prompt and count >= limit:
        raise UserError(
            f"the prompt {prompt!r} is {count} tokens, and texts are cut at {limit}: nothing is left of them. Wanted "
            "more tokens, or a shorter default prompt.",
            key="max_length",
        )
    tokens = _skipped(tokenizer, prompt)
    skipped = 0 if encoding.prompts.pooled else tokens
    return Reader(tokenizer, limit, prompt, skipped, AsSentenceEncoder(default, limit, prompt, tokens))


def _skipped(tokenizer: PreTrainedTokenizerBase, prompt: str) -> int:
    """Return how many tokens of a text are its prompt: as sentence-transformers counts, without a token of the end."""
    ids = tokenizer(prompt)["input_ids"] if prompt else []
    return len(ids) - (bool(ids) and ids[-1] in tokenizer.all_special_ids)
