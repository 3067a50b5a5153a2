"""Teacher and student before any weight is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Pair:
    """Teacher and student before any weight is loaded.

    Attributes:
        teacher: Configuration.
        student: Configuration.
        tokenizer: Feeds both; the student alone where the teacher has one of its own.
        teacher_tokenizer: The teacher's own; None where one feeds both.
        teacher_head: The teacher's configuration where it brings the task's head, else None.
        student_head: Likewise.
        max_length: Longest input both take and the recipe wants; None where nothing limits it.
        left_out: Tokens that are not the same in both vocabularies, where these differ in special tokens alone.
    """

    teacher: PretrainedConfig
    student: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase
    teacher_tokenizer: PreTrainedTokenizerBase | None
    teacher_head: PretrainedConfig | None
    student_head: PretrainedConfig | None
    max_length: int | None
    left_out: tuple[int, ...] = ()
