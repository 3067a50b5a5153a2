"""A teacher that is an entailment model: `teacher.py` is the entry."""

from hf_distill.teachers.zero_shot.teacher import ZeroShotTeacher

__all__ = ["ZeroShotTeacher"]
