"""The table of students: a recipe's name -> the class that makes the model to train."""

from __future__ import annotations

from hf_distill.students.base import Student
from hf_distill.students.copy_layers import CopyLayers
from hf_distill.students.from_config import FromConfig
from hf_distill.students.lora import LoraStudent
from hf_distill.students.optimal_brain_damage import OptimalBrainDamage
from hf_distill.students.pretrained import PretrainedStudent
from hf_distill.students.prune_depth import PruneDepth
from hf_distill.students.prune_vocabulary import PruneVocabulary
from hf_distill.students.prune_width import PruneWidth

STUDENTS: dict[str, type[Student]] = {
    "copy_layers": CopyLayers,
    "from_config": FromConfig,
    "lora": LoraStudent,
    "optimal_brain_damage": OptimalBrainDamage,
    "pretrained": PretrainedStudent,
    "prune_depth": PruneDepth,
    "prune_vocabulary": PruneVocabulary,
    "prune_width": PruneWidth,
}

__all__ = [
    "STUDENTS",
    "CopyLayers",
    "FromConfig",
    "LoraStudent",
    "OptimalBrainDamage",
    "PretrainedStudent",
    "PruneDepth",
    "PruneVocabulary",
    "PruneWidth",
    "Student",
]
