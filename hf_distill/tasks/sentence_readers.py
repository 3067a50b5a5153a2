"""How teacher and student of a sentence-similarity run read a text: tokenizer, prompt, maximum length, pooling."""

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
class TextReader:
    """How a model reads a text.

    Attributes:
        tokenizer: Tokenizer of the model.
        max_length: Maximum length of a text in tokens, prompt included; None for no limit.
        prompt: Text before every text.
        skipped: Number of tokens at the start of every text that its pooling leaves out.
        adapt: Turns the loaded model into a sentence encoder.
    """

    tokenizer: PreTrainedTokenizerBase
    max_length: int | None
    prompt: str
    skipped: int
    adapt: AsSentenceEncoder

    def reads_like(self, other: TextReader) -> bool:
        """Whether both make the same tokens from a text and pool the same ones."""
        return self.tokenizer is other.tokenizer and self.prompt == other.prompt


def readers(setup: Setup, pooling: Literal["mean", "cls"] | None) -> tuple[TextReader, TextReader]:
    """Return how student and teacher read texts, from their own files; a student without them reads as the teacher.

    Args:
        setup: The models, and what the recipe says about lengths.
        pooling: Pooling of models that do not declare one.

    Raises:
        UserError: A model's files ask for something that is not supported, or a prompt leaves no room for a text.
    """
    known = setup.teacher or next(iter(setup.configs), None)
    teachers = None if known is None else read_encoding(known)
    # A student without Dense layers keeps its own width; an objective that compares vectors learns a projection.
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
        logger.info("texts are truncated to %s tokens, as in the teacher's own files", limit)
    sides = {
        "student": (own or default, setup.tokenizer),
        "teacher": (teachers or default, setup.teacher_tokenizer or setup.tokenizer),
    }
    for side, (encoding, _) in sides.items():
        _log_prompts(side, encoding, own is not None or side == "teacher")
    student, teacher = (_reader(encoding, tokenizer, default, limit) for encoding, tokenizer in sides.values())
    return student, teacher


def _log_prompts(side: str, encoding: Encoding, own: bool) -> None:
    prompts = encoding.prompts
    if prompts.text and own:
        logger.info("the %s reads every text after its default prompt %r", side, prompts.text)
    if prompts.unused and own:
        logger.warning(
            "the %s has prompts (%s), but no default one: it reads texts without a prompt. To use one for every text, "
            "name it as default_prompt_name in a copy's config_sentence_transformers.json",
            *(side, ", ".join(prompts.unused)),
        )


def _reader(encoding: Encoding, tokenizer: PreTrainedTokenizerBase, default: Encoding, limit: int | None) -> TextReader:
    check_length(tokenizer, limit)
    prompt = encoding.prompts.text
    count = len(tokenizer(prompt)["input_ids"]) if prompt else 0
    if limit is not None and prompt and count >= limit:
        raise UserError(
            f"the prompt {prompt!r} has {count} tokens, and texts are truncated to {limit}: no text is left. Wanted "
            "more tokens, or a shorter default prompt.",
            key="max_length",
        )
    tokens = _skipped(tokenizer, prompt)
    skipped = 0 if encoding.prompts.pooled else tokens
    return TextReader(tokenizer, limit, prompt, skipped, AsSentenceEncoder(default, limit, prompt, tokens))


def _skipped(tokenizer: PreTrainedTokenizerBase, prompt: str) -> int:
    """Return the number of prompt tokens of a text, counted as sentence-transformers does: without an end token."""
    ids = tokenizer(prompt)["input_ids"] if prompt else []
    return len(ids) - (bool(ids) and ids[-1] in tokenizer.all_special_ids)
