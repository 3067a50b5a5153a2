"""The checks of the doctor, in the order in which their findings are shown."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from hf_distill.run.doctor.chat import chat
from hf_distill.run.doctor.disk import disk
from hf_distill.run.doctor.finding import Finding
from hf_distill.run.doctor.gradients import gradients
from hf_distill.run.doctor.hub_rights import hub
from hf_distill.run.doctor.labels import labels
from hf_distill.run.doctor.lengths import lengths
from hf_distill.run.doctor.machine import machine
from hf_distill.run.doctor.memory import memory
from hf_distill.run.doctor.numbers import numbers
from hf_distill.run.doctor.opened import Opened
from hf_distill.run.doctor.order import order
from hf_distill.run.doctor.overlap import overlap
from hf_distill.run.doctor.special_tokens import special_tokens
from hf_distill.run.doctor.speed import speed
from hf_distill.run.doctor.targets import targets
from hf_distill.run.doctor.teaching import teaching
from hf_distill.run.doctor.tokenizers import tokenizers
from hf_distill.run.doctor.tokens import tokens
from hf_distill.run.doctor.values import values

Check = Callable[[Opened], Iterable[Finding]]

# Name -> check. The name is that of the findings; also of those that are made of an error that it raised.
# Files first, then the data, then what runs the models, then what the run costs.
CHECKS: dict[str, Check] = {
    "tokenizer": tokenizers,
    "special": special_tokens,
    "chat": chat,
    "labels": labels,
    "learned": tokens,
    "numbers": numbers,
    "length": lengths,
    "order": order,
    "overlap": overlap,
    "teacher": teaching,
    "targets": targets,
    "start": values,
    "gradients": gradients,
    "machine": machine,
    "memory": memory,
    "speed": speed,
    "disk": disk,
    "hub": hub,
}
