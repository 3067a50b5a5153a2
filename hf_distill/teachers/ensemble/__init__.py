"""Several teachers together: `teacher.py` is the entry."""

from hf_distill.teachers.ensemble.averaging import Ensemble
from hf_distill.teachers.ensemble.teacher import EnsembleTeacher

__all__ = ["Ensemble", "EnsembleTeacher"]
