"""A teacher given as data: `teacher.py` is the entry."""

from hf_distill.teachers.given.teacher import GivenTeacher

__all__ = ["GivenTeacher"]
