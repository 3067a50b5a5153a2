"""Whole trainings of some epochs: the teacher asked in every one of them, or once before the first.

The capture is part of the cost. A third way would be to write the teacher's answers down while the student trains on
them for the first epoch: the teacher is asked as often as by a capture. Hence the first epoch is told apart: that of a
training online is the least that the third way would take, and is to be compared with a capture and the epoch after it.

The learning rate is 0, so that all variants of a model have the same mean loss. Sizes are those of `classification` and
`step`.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from benchmarks import classification, step
from benchmarks.measure import Outcome, Variant, measuring
from benchmarks.reading import counting, timed

Kind = Literal["classifier", "language"]


@dataclass(frozen=True)
class Settings:
    """Sizes of the work.

    Attributes:
        epochs: Of the training.
        examples: Texts of the language models.
        tiny: Whether models and texts are as small as they can be.
    """

    epochs: int = 3
    examples: int = 16
    tiny: bool = False

    @classmethod
    def quick(cls) -> Settings:
        """Return sizes that take no time."""
        return cls(epochs=2, examples=8, tiny=True)


@dataclass
class Work:
    """What is trained, and on what.

    Attributes:
        student: A model.
        teacher: Another one.
        data: A `replay.TrainingData`.
        batch: Examples of a step.
        settings: Of what is kept.
    """

    student: Any
    teacher: Any
    data: Any
    batch: int
    settings: dict[str, Any]


def classifiers(settings: Settings) -> Work:
    """Return texts of 27 tokens on average, three classes."""
    from hf_distill.cache.replay import TrainingData
    from hf_distill.rows.examples import ExampleRows

    sizes = classification.Settings.quick() if settings.tiny else classification.Settings()
    examples = classification.data(sizes)
    student, teacher = (
        classification.model(sizes, shape, seed) for seed, shape in enumerate((sizes.student, sizes.teacher), 1)
    )
    data = TrainingData(examples, examples.select([0]), classification.collate(None), ExampleRows(width=3))
    return Work(student, teacher, data, sizes.batch, {"top": 3, "precision": "float32"})


def language_models(settings: Settings) -> Work:
    """Return texts of one length, and Llamas."""
    from transformers import default_data_collator

    from hf_distill.cache.replay import TrainingData
    from hf_distill.rows.tokens import TokenRows

    sizes = step.Settings.quick() if settings.tiny else step.Settings()
    examples = step.data(replace(sizes, batch=settings.examples, steps=1 - step.WARM_UP))
    examples = examples.add_column("length", [sizes.tokens] * len(examples))
    student, teacher = (step.model(sizes, shape, seed) for seed, shape in enumerate((sizes.student, sizes.teacher), 1))
    data = TrainingData(examples, examples.select([0]), default_data_collator, TokenRows(shift=True))
    return Work(student, teacher, data, sizes.batch, {"top": sizes.kept, "precision": "float16"})


MODELS: dict[Kind, Callable[[Settings], Work]] = {"classifier": classifiers, "language": language_models}


class Clock:
    """Takes the time of every epoch, as a callback of `Trainer`."""

    def __init__(self) -> None:
        from transformers import TrainerCallback

        clock = self
        self.epochs: list[float] = []

        class Callback(TrainerCallback):
            def on_epoch_begin(self, *_: Any, **__: Any) -> None:
                clock.epochs.append(-time.process_time())

            def on_epoch_end(self, *_: Any, **__: Any) -> None:
                clock.epochs[-1] += time.process_time()

        self.callback = Callback()


def trained(kind: Kind, *, cached: bool) -> Callable[[Settings], Outcome]:
    """Return a variant's `run`: all epochs, with the capture if there is one."""

    def run(settings: Settings) -> Outcome:
        from transformers.utils import logging

        logging.set_verbosity_error()
        work, clock = MODELS[kind](settings), Clock()
        parts = {}
        with tempfile.TemporaryDirectory() as directory, counting(work.teacher) as seen, measuring() as whole:
            args = _arguments(work, settings, directory)
            teacher, data = work.teacher, work.data
            if cached:
                started = time.process_time()
                data, teacher = _captured(work, args)
                parts["capturing"] = time.process_time() - started
            trainer = _trainer(work, args, teacher, data)
            if not cached:
                seen.clear()  # a few tokens on which the trainer tried out what it can do with the model
            trainer.add_callback(clock.callback)
            read = timed(trainer)
            output = trainer.train()
        asked = len(work.data.train) * (1 if cached else settings.epochs)
        if sum(seen) != asked:
            raise AssertionError(f"the teacher answered {sum(seen)} examples instead of {asked}.")
        parts |= {"the first epoch": clock.epochs[0], **read(slice(None))}
        counts = {"teacher forwards": sum(seen)}
        return Outcome(whole, {"loss": output.training_loss}, per="training", parts=parts, counts=counts)

    return run


def _arguments(work: Work, settings: Settings, directory: str) -> Any:
    from hf_distill import DistillationArguments

    return DistillationArguments(
        output_dir=directory,
        per_device_train_batch_size=work.batch,
        per_device_eval_batch_size=work.batch,
        num_train_epochs=settings.epochs,
        learning_rate=0.0,
        use_cpu=True,
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )


def _trainer(work: Work, args: Any, teacher: Any, data: Any) -> Any:
    from hf_distill import DistillationTrainer
    from hf_distill.objectives import KLDivergence

    return DistillationTrainer(
        work.student,
        args,
        teacher=teacher,
        objectives=[KLDivergence()],
        layout=data.layout,
        train_dataset=data.train,
        data_collator=data.collator,
    )


def _captured(work: Work, args: Any) -> tuple[Any, Any]:
    """Return data and teacher of a training from a cache, once it is filled."""
    from hf_distill.cache.cache import Cache
    from hf_distill.cache.format import Kept

    kept = Kept.of(work.teacher.eval(), work.data.layout, temperature=1.0, **work.settings)
    cache = Cache(work.data, work.teacher, kept, {}, Path(args.output_dir, "cache"))
    cache.fill(args)
    return cache.apply(work.data)


VARIANTS: dict[str, Variant] = {
    "online": Variant(trained("classifier", cached=False), "classifier, the teacher in every epoch", "classifier"),
    "cached": Variant(trained("classifier", cached=True), "classifier, the teacher once", "classifier"),
    "online_language": Variant(trained("language", cached=False), "language model, the teacher in every epoch"),
    "cached_language": Variant(trained("language", cached=True), "language model, the teacher once, its top 64"),
}
BASELINE = ""  # two kinds of models are not compared with one of them
RATIOS = (
    ("classifier: cached with its capture, of online", "online", "cached"),
    ("language model: cached with its capture, of online", "online_language", "cached_language"),
)
