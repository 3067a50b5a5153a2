"""Knowledge distillation on Hugging Face Transformers.

The names are loaded on first use: `import hf_distill` and the check of a recipe's text stay fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from hf_distill._version import __version__

if TYPE_CHECKING:
    from hf_distill.errors import UserError
    from hf_distill.recipe.reader import load_recipe
    from hf_distill.run.distill import distill
    from hf_distill.run.trainer_report import evaluate_distillation
    from hf_distill.trainer import DistillationTrainer
    from hf_distill.training_args import DistillationArguments

_MODULES = {
    "DistillationArguments": "training_args",
    "DistillationTrainer": "trainer",
    "UserError": "errors",
    "distill": "run.distill",
    "evaluate_distillation": "run.trainer_report",
    "load_recipe": "recipe.reader",
}

__all__ = [
    "DistillationArguments",
    "DistillationTrainer",
    "UserError",
    "__version__",
    "distill",
    "evaluate_distillation",
    "load_recipe",
]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module 'hf_distill' has no attribute '{name}'")
    return getattr(import_module(f"hf_distill.{_MODULES[name]}"), name)
