"""Adapters beside all weights: a step of distilling a language model into a student of the teacher's own weights.

The memory is that of everything, the weights of both models included. The learning rate is 0 and adapters begin as
nothing, so that every step of every variant has the same loss.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.measure import Cost, Outcome, Variant, measuring
from benchmarks.step import Clock, arguments, data
from benchmarks.step import Settings as StepSettings
from benchmarks.step import model as random_model


@dataclass(frozen=True)
class Settings(StepSettings):
    """Sizes of the work, as for `step`; the student is the teacher's copy.

    Attributes:
        rank: Of the adapters.
    """

    tokens: int = 128
    prompt: int = 32
    teacher: tuple[int, int, int] = (12, 768, 2048)
    steps: int = 3
    rank: int = 16


def distilling(adapters: str, *, shared: bool = True) -> Callable[[Settings], Outcome]:
    """Return a variant's `run`.

    Args:
        adapters: Which layers get one: `attention`, `all`; or `none`, and all weights are trained.
        shared: Whether frozen weights that equal the teacher's are held once.
    """

    def run(settings: Settings) -> Outcome:
        from hf_distill import DistillationArguments, DistillationTrainer
        from hf_distill.models.lora import Lora
        from hf_distill.objectives import KLDivergence, Labels

        clock = Clock(settings.steps)
        with tempfile.TemporaryDirectory() as directory, measuring() as cost:
            teacher = random_model(settings, settings.teacher, 1)
            student: Any = copy.deepcopy(teacher)
            if adapters != "none":
                student = Lora(r=settings.rank, target_modules=LAYERS[adapters]).wrap(student)
            kind: Any = DistillationTrainer if shared else Apart.of(DistillationTrainer)
            trainer = kind(
                student,
                DistillationArguments(**arguments(settings, directory)),
                teacher=teacher,
                objectives=[KLDivergence(weight=0.5), Labels(weight=0.5)],
                train_dataset=data(settings),
                callbacks=[clock.callback],
            )
            trainer.stays_shared = True  # as in a run
            loss = trainer.train().training_loss
        trained = sum(one.numel() for one in student.parameters() if one.requires_grad)
        return Outcome(Cost(clock.seconds, cost.peak_mib), {"loss": loss}, counts={"trained parameters": trained})

    return run


class Apart:
    """Holds the weights of both models, as without this package."""

    @staticmethod
    def of(trainer: Any) -> Any:
        """Return a trainer class that shares nothing."""
        return type("Apart", (trainer,), {"share_weights": lambda self: None})


LAYERS = {
    "attention": ["q_proj", "v_proj"],
    "all": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}
VARIANTS: dict[str, Variant] = {
    "full": Variant(distilling("none"), "all weights", "step"),
    "apart": Variant(distilling("attention", shared=False), "adapters, weights held twice", "step"),
    "lora": Variant(distilling("attention"), "adapters, weights held once", "step"),
    "lora_all": Variant(distilling("all"), "adapters of all layers, weights held once", "step"),
}
BASELINE = "full"
RATIOS = (
    ("adapters, of all weights", "full", "lora"),
    ("weights held once, of twice", "apart", "lora"),
    ("adapters of all layers, of all weights", "full", "lora_all"),
)
