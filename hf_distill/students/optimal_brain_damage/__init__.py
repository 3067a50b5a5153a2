"""A student without weights of least saliency: `student.py` is the entry; second derivatives, masks."""

from hf_distill.students.optimal_brain_damage.student import OptimalBrainDamage

__all__ = ["OptimalBrainDamage"]
