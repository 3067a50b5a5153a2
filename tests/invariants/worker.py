"""What runs as several processes, or is killed."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import datasets
import torch
from invariants import cached as live_and_cached
from invariants import cases
from invariants.cases import KINDS, NotingTrainer, make_trainer, split, train
from invariants.projected import Hooked, Projected
from transformers import TrainerCallback
from versions import CHECKPOINTING

from hf_distill.objectives import InputGradient, KLDivergence, Labels
from hf_distill.teachers import AdapterOffTeacher
from hf_distill.teachers.ema import Ema

SAMPLED = (
    *((kind, "random") for kind in KINDS),
    ("classification", "group_by_length"),
    ("causal-lm", "group_by_length"),
)
CACHED = ("classification", "token-classification", "causal-lm")
SHARDED = ("classification", "causal-lm")
# With a projection; alone, it leaves the head of the student without gradient.
LEARNED: dict[str, tuple[str, dict[str, Any]]] = {
    "with labels": ("classification", {"terms": [Projected(weight=0.5), Labels()]}),
    "alone": ("classification", {"terms": [Projected()]}),
    "alone, activation checkpointing": ("classification", {"terms": [Projected()], **CHECKPOINTING}),
    "second derivatives": ("classification", {"terms": [InputGradient(), Labels()]}),
    "hooked": ("causal-lm", {"terms": [Projected(), Hooked(weight=0.1)]}),
}
# Steps after which a run is stopped: within an epoch, at its end, within the next.
STOPS = (("random", 4), ("group_by_length", 3), ("group_by_length", 4), ("batch_rebalance", 5))
# Short windows at the end of each epoch of 3 steps, dropout, two epochs and a half.
RESUMED: dict[str, Any] = {
    "dropout": 0.1, "dtype": torch.float32, "optim": "adamw_torch", "max_steps": 8,
    "save_strategy": "steps", "save_steps": 1, "gradient_accumulation_steps": 2,
}  # fmt: skip


LEARNED_SHARDED: dict[str, Any] = {
    "terms": [Projected(weight=0.5), Labels()], "teacher_width": 24, "num_train_epochs": 1, "dtype": torch.float32,
}  # fmt: skip


GROUPS = ("a", "b", "c")
WEIGHED: dict[str, Any] = {
    "classification": [
        KLDivergence(group_weights="worst_group"),
        Labels(group_weights="inverse_frequency"),
        Projected(weight=0.5),
    ],
    "causal-lm-gpt2": [KLDivergence(group_weights={"b": 3.0}), Labels(group_weights="worst_group")],
    "sentence-similarity": None,
}


def grouped(kind: str, count: int = 24) -> list[dict[str, Any]]:
    """Return rows with weights, of which some are 0, in groups of different size."""
    rows = cases.make_rows(kind, count)
    return [
        {**row, "example_weight": (at * 3 % 7) / 4, "example_group": GROUPS[(at % 8 > 2) + (at % 8 > 6)]}
        for at, row in enumerate(rows)
    ]


class Stop(TrainerCallback):
    """Ends a run after a step, by word or by force."""

    def __init__(self, step: int, kill: bool = False) -> None:
        self.step = step
        self.kill = kill

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step and self.kill:
            os.kill(os.getpid(), signal.SIGKILL)
        control.should_training_stop = state.global_step == self.step


def splits(directory: Path) -> tuple[NotingTrainer, Any]:
    """Train and evaluate every kind of model in steps of 2 processes x 4."""
    result = {}
    for kind, sampling in SAMPLED:
        settings = {"train_sampling_strategy": sampling, "per_device_eval_batch_size": 2, **split(4, processes=2)}
        trainer = make_trainer(kind, directory, num_train_epochs=1, **settings)
        result[kind, sampling] = (train(trainer), trainer.predict(trainer.eval_dataset, metric_key_prefix="eval"))
    return trainer, result


def weighed(directory: Path) -> tuple[NotingTrainer, Any]:
    """Train with weights of examples and groups in steps of 2 processes x 2 x 2."""
    result = {}
    for kind, terms in WEIGHED.items():
        trainer = make_trainer(
            kind, directory, rows=grouped(kind), terms=terms, num_train_epochs=1, **split(2, processes=2)
        )
        record = train(trainer)
        metrics = trainer.evaluate(datasets.Dataset.from_list(grouped(kind)[:13]))
        result[kind] = (record, trainer.weighing.log_q, metrics)
    return trainer, result


def learned(directory: Path) -> tuple[NotingTrainer, Any]:
    """Train projections in steps of 2 processes x 2 x 2."""
    result = {}
    for name, (kind, settings) in LEARNED.items():
        width = {"teacher_width": 16 if name == "hooked" else 24}
        trainer = make_trainer(kind, directory, num_train_epochs=1, **width, **settings, **split(2, processes=2))
        result[name] = (train(trainer), trainer.evaluate())
    return trainer, result


def resume(directory: Path) -> tuple[NotingTrainer, Any]:
    """Train straight through, and in two parts; return the weights of both."""
    result = {}
    for sampling, step in STOPS:
        settings = {**RESUMED, "train_sampling_strategy": sampling, "per_device_train_batch_size": 2}
        whole, halves = directory / f"whole-{sampling}-{step}", directory / f"halves-{sampling}-{step}"
        straight = train(make_trainer("classification", whole, **settings))
        first = make_trainer("classification", halves, **settings)
        first.add_callback(Stop(step))
        first.train()
        trainer = make_trainer("classification", halves, **settings)
        rest = train(trainer, resume_from_checkpoint=str(halves / f"checkpoint-{step}"))
        result[sampling, step] = (straight, rest)
    return trainer, result


def fsdp(directory: Path) -> tuple[NotingTrainer, Any]:
    """Train sharded; return logs and an evaluation."""
    result = {}
    for kind in SHARDED:
        trainer = make_trainer(kind, directory, num_train_epochs=1, dtype=torch.float32, **split(4, processes=2))
        trainer.record.gradients = NoNotes()
        trainer.train()
        result[kind] = (trainer.record.logs, trainer.evaluate())
        trainer.save_model(str(directory / kind))
    return trainer, result


def fsdp_learned(directory: Path) -> tuple[NotingTrainer, Any]:
    """Train a projection sharded, straight through and in two parts; return the logs of both."""
    settings: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2, "optim": "adamw_torch", **LEARNED_SHARDED}
    logs = []
    for resumed in (False, True):
        trainer = make_trainer("classification", directory, **settings, **split(4, processes=2))
        trainer.record.gradients = NoNotes()
        trainer.train(resume_from_checkpoint=str(directory / "checkpoint-2") if resumed else None)
        logs.append(trainer.record.logs)
    trainer.save_model(str(directory / "exported"))
    return trainer, logs


def cached(directory: Path) -> tuple[NotingTrainer, Any]:
    """Capture with both processes, in shards of 4 examples, and train from that in steps of 2 processes x 4."""
    from hf_distill.cache import cache

    cache.SHARD_EXAMPLES = 4
    result = {}
    for kind in CACHED:
        student, teacher, data = live_and_cached.parts(kind)
        features = live_and_cached.FEATURES.get(kind, ())
        states = live_and_cached.states_for(features, student, teacher)
        data, replay = live_and_cached.capture(teacher, data, directory / kind, states=states).apply(data)
        settings = {"num_train_epochs": 2, **split(4, processes=2)}
        terms = (*live_and_cached.terms_of(kind), *features)
        trainer = live_and_cached.trainer(student, replay, data, directory, terms, **settings)
        shards = len(list((directory / kind).glob("*.arrow")))
        result[kind] = (train(trainer), trainer.evaluate(), shards)
    return trainer, result


def compiled(directory: Path) -> tuple[NotingTrainer, Any]:
    """Train by compiled code in steps of 2 processes x 4, sharded or not."""
    from hf_distill.training.chunked import rows as head_rows

    head_rows.BLOCK_BYTES = cases.VOCABULARY * 4 * 4
    settings: dict[str, Any] = {"compile_loss": True, "num_train_epochs": 1, "dtype": torch.float32}
    trainer = make_trainer("causal-lm", directory, **settings, **split(4, processes=2))
    trainer.record.gradients = NoNotes()
    trainer.train()
    assert trainer._heads is not None
    compiler = trainer._heads._compiler
    return trainer, (trainer.accelerator.distributed_type.value, compiler and compiler.graphs, trainer.record.logs)


class NoNotes(list[Any]):
    """Shards of gradients are not worth keeping."""

    def append(self, _: Any) -> None:
        """Forget it."""


def not_finite(directory: Path) -> tuple[NotingTrainer, Any]:
    """Meet an example that makes one process's loss NaN; return what each process says, and leaves out."""
    from accelerate.utils import gather_object
    from marked import Marked, marked_rows

    from hf_distill.errors import NotFinite

    settings: dict[str, Any] = {"train_sampling_strategy": "sequential", "logging_steps": 100, "num_train_epochs": 1}
    made = {}
    for on_nan in ("stop", "skip", "rollback"):
        rows = marked_rows(15, count=88)
        saved = {"save_strategy": "steps", "save_steps": 1} if on_nan == "rollback" else {}
        trainer = make_trainer(
            "classification", directory, terms=[Marked()], rows=rows, on_nan=on_nan, **settings, **saved,
            **split(4, processes=2),
        )  # fmt: skip
        try:
            trainer.train()
            said: Any = trainer.skipped
        except NotFinite as error:
            said = str(error)
        made[on_nan] = gather_object([said])
    return trainer, made


def kill(directory: Path) -> tuple[NotingTrainer, Any]:
    """Train until killed."""
    trainer = make_trainer("causal-lm-gpt2", directory, per_device_train_batch_size=4, **RESUMED)
    trainer.add_callback(Stop(4, kill=True))
    return trainer, train(trainer)


def generate(directory: Path) -> tuple[NotingTrainer, Any]:
    """Return what each process says that the model generates."""
    from accelerate.utils import gather_object

    trainer = make_trainer("sequence-to-sequence", directory, max_steps=1, **split(4, processes=2))
    return trainer, gather_object([cases.generator().texts(trainer.model, 2)])


OWN = {"adapter_off": AdapterOffTeacher, "ema": lambda: Ema(0.5)}


def own_knowledge(directory: Path) -> tuple[NotingTrainer, Any]:
    """Train adapters with teachers made of the student itself, in steps of 2 processes x 2 x 2."""
    result = {}
    for name, teacher in OWN.items():
        trainer = cases.make_adapted(directory, teacher(), **split(2, processes=2))
        result[name] = (train(trainer), trainer.evaluate())
    return trainer, result


def done(job: str, directory: Path) -> tuple[int, Any]:
    """Return how many processes did a job, and what it found; only the first process has that."""
    jobs = (
        splits,
        weighed,
        learned,
        resume,
        fsdp,
        fsdp_learned,
        cached,
        compiled,
        generate,
        not_finite,
        kill,
        own_knowledge,
    )
    last, found = {one.__name__: one for one in jobs}[job](directory)
    size, first = last.args.world_size, last.is_world_process_zero()
    last.end()
    return size, found if first else None
