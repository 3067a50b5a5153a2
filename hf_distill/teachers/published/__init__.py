"""Published targets of other parties: `teacher.py` is the entry."""

from hf_distill.teachers.published.teacher import PublishedTeacher

__all__ = ["PublishedTeacher"]
