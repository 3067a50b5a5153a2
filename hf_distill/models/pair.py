"""What is known of teacher and student before any weight is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from hf_distill.models.cut_tokenizer import Cut


@dataclass(frozen=True)
class Pair:
    """What is known of teacher and student before any weight is loaded.

    Attributes:
        teacher: The teacher's configuration.
        student: The student's configuration.
        tokenizer: Tokenizer of both models; of the student only, if `teacher_tokenizer` is set.
        teacher_tokenizer: The teacher's own tokenizer; None if both models use the same one.
        teacher_head: The teacher's configuration if its checkpoint has the task's head, else None.
        student_head: The student's configuration if its checkpoint has the task's head, else None.
        max_length: Longest input in tokens that both models and the recipe allow; None if unlimited.
        left_out: Ids of tokens that differ between the vocabularies, if only special or unused tokens differ.
        cut: The part of a vocabulary that the student has; None if it has all of it.
        uncut: The same before the student's vocabulary was cut; None if it was not.
        renumbered: Whether the teacher reads the student's tokens under the ids of its own, larger vocabulary. It is
            evaluated with `teacher_tokenizer`.
        members: Each teacher with the student, where each of several reads tokens or inputs of its own; else empty.
    """

    teacher: PretrainedConfig
    student: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase
    teacher_tokenizer: PreTrainedTokenizerBase | None
    teacher_head: PretrainedConfig | None
    student_head: PretrainedConfig | None
    max_length: int | None
    left_out: tuple[int, ...] = ()
    members: tuple[Pair, ...] = ()
    cut: Cut | None = None
    uncut: Pair | None = None
    renumbered: bool = False

    @property
    def own_tokens(self) -> bool:
        """Whether teacher and student read a text as different tokens in training."""
        return self.teacher_tokenizer is not None and not self.renumbered
