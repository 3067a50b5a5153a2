"""The list of what is overridden in `transformers.Trainer`, held to the installed one and to our classes."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from typing import Any

from transformers import Trainer

from hf_distill import DistillationTrainer
from hf_distill.training.overrides import ATTRIBUTES, OVERRIDES, READ


def takes(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    return {name: one for name, one in inspect.signature(function).parameters.items() if name != "self"}


def spelled(function: Callable[..., Any]) -> str:
    return " ".join(str(one.replace(annotation=one.empty, default=one.empty)) for one in takes(function).values())


def test_trainer_has_every_hook_as_listed() -> None:
    """A hook that an update renames is never called again: the loss, a checkpoint or a count would be Trainer's own."""
    for name, override in OVERRIDES.items():
        hook = getattr(Trainer, name, None)
        assert hook is not None, f"Trainer.{name} is gone. It was there because: {override.why}"
        assert spelled(hook) == override.takes, (
            f"Trainer.{name} takes other arguments. It is there because: {override.why}"
        )
    source = ast.parse(inspect.getsource(inspect.getmodule(Trainer)))  # type: ignore[arg-type]
    known = {node.attr for node in ast.walk(source) if isinstance(node, ast.Attribute)} | set(dir(Trainer))
    assert {*READ, *ATTRIBUTES} - known == set()


def test_everything_overridden_is_listed() -> None:
    """An override that is not in the list is not looked at when Transformers is updated."""
    ours = [cls for cls in DistillationTrainer.__mro__ if cls.__module__.startswith("hf_distill.")]
    replaced = {name for cls in ours for name in vars(cls) if hasattr(Trainer, name)}
    special = {name for name in replaced if name.startswith("__") and name != "__init__"}
    assert replaced - special == {*OVERRIDES, *ATTRIBUTES}


def test_an_override_takes_all_that_trainer_passes() -> None:
    """An argument that ours does not take is a TypeError in the middle of a training, or is dropped."""
    ours = [cls for cls in DistillationTrainer.__mro__ if cls.__module__.startswith("hf_distill.")]
    for cls in ours:
        for name in OVERRIDES.keys() & vars(cls).keys():
            taken = takes(getattr(cls, name)).values()
            wanted = [one for one in takes(getattr(Trainer, name)).values() if one.kind is not one.VAR_KEYWORD]
            names, kinds = {one.name for one in taken}, {one.kind for one in taken}
            open_ended = inspect.Parameter.VAR_KEYWORD in kinds
            missing = [one.name for one in wanted if one.name not in names and not open_ended]
            assert not missing, f"{cls.__name__}.{name} does not take {', '.join(missing)}"
