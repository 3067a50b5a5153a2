"""The teachers: where targets come from. `TEACHERS` lists them by name."""

from __future__ import annotations

from hf_distill.teachers.adapter_off import AdapterOffTeacher
from hf_distill.teachers.base import FineTune, Teacher
from hf_distill.teachers.cached import CachedTeacher
from hf_distill.teachers.ema import EmaTeacher
from hf_distill.teachers.ensemble import EnsembleTeacher
from hf_distill.teachers.finetuned import FinetunedTeacher
from hf_distill.teachers.given import GivenTeacher
from hf_distill.teachers.mutual import MutualTeacher
from hf_distill.teachers.noisy import NoisyTeacher
from hf_distill.teachers.pretrained import PretrainedTeacher
from hf_distill.teachers.prompted import PromptedTeacher
from hf_distill.teachers.published import PublishedTeacher
from hf_distill.teachers.served import ServedTeacher
from hf_distill.teachers.zero_shot import ZeroShotTeacher

TEACHERS: dict[str, type[Teacher]] = {
    "adapter_off": AdapterOffTeacher,
    "cached": CachedTeacher,
    "ema": EmaTeacher,
    "ensemble": EnsembleTeacher,
    "finetuned": FinetunedTeacher,
    "given": GivenTeacher,
    "mutual": MutualTeacher,
    "noisy": NoisyTeacher,
    "pretrained": PretrainedTeacher,
    "prompted": PromptedTeacher,
    "zero_shot": ZeroShotTeacher,
    "published": PublishedTeacher,
    "served": ServedTeacher,
}

__all__ = [
    "TEACHERS",
    "AdapterOffTeacher",
    "CachedTeacher",
    "EmaTeacher",
    "EnsembleTeacher",
    "FineTune",
    "FinetunedTeacher",
    "GivenTeacher",
    "MutualTeacher",
    "NoisyTeacher",
    "PretrainedTeacher",
    "PromptedTeacher",
    "PublishedTeacher",
    "ServedTeacher",
    "Teacher",
    "ZeroShotTeacher",
]
