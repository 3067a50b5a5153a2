"""Where targets come from. This table is the list of teachers."""

from __future__ import annotations

from hf_distill.teachers.base import FineTune, Teacher
from hf_distill.teachers.finetuned import FinetunedTeacher
from hf_distill.teachers.pretrained import PretrainedTeacher

TEACHERS: dict[str, type[Teacher]] = {
    "finetuned": FinetunedTeacher,
    "pretrained": PretrainedTeacher,
}

__all__ = ["TEACHERS", "FineTune", "FinetunedTeacher", "PretrainedTeacher", "Teacher"]
