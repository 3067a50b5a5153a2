"""The checks of the doctor, in the order in which their findings are shown."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from hf_distill.run.doctor.finding import Finding
from hf_distill.run.doctor.gradients import gradients
from hf_distill.run.doctor.opened import Opened
from hf_distill.run.doctor.tokenizers import tokenizers
from hf_distill.run.doctor.values import values

Check = Callable[[Opened], Iterable[Finding]]

# Name -> check. The name stands for findings that the check itself does not make: it raised an error.
CHECKS: dict[str, Check] = {
    "tokenizer": tokenizers,
    "start": values,
    "gradients": gradients,
}
