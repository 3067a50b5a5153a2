"""A teacher behind a server: `teacher.py` is the entry."""

from hf_distill.teachers.served.teacher import ServedTeacher

__all__ = ["ServedTeacher"]
