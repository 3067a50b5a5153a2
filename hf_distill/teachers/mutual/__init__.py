"""Models that train together: `teacher.py` is the entry, `peers.py` what teaches."""

from hf_distill.teachers.mutual.peers import Mutual
from hf_distill.teachers.mutual.teacher import MutualTeacher

__all__ = ["Mutual", "MutualTeacher"]
