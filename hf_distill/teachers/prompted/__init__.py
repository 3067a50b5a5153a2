"""A teacher that is a language model with a prompt: `teacher.py` is the entry."""

from hf_distill.teachers.prompted.teacher import PromptedTeacher

__all__ = ["PromptedTeacher"]
