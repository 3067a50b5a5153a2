"""Teachers of private rows, of which students learn noisy votes (PATE): `teacher.py` is the entry."""

from hf_distill.teachers.noisy.teacher import NoisyTeacher

__all__ = ["NoisyTeacher"]
