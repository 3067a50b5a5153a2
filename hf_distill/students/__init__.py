"""Where the student comes from. This table is the list of students."""

from __future__ import annotations

from hf_distill.students.base import Student
from hf_distill.students.pretrained import PretrainedStudent

STUDENTS: dict[str, type[Student]] = {
    "pretrained": PretrainedStudent,
}

__all__ = ["STUDENTS", "PretrainedStudent", "Student"]
