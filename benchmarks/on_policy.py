"""Optimiser steps of on-policy distillation: the student writes 32 tokens after each prompt, and learns from them.

All compute the reverse KL at temperature 1, `KL(student || teacher)`, over the written tokens. Tokens are drawn with
`top_k` 1 and the learning rate is 0, so that every step of every variant has the same texts and the same loss. The
parts are measured alone: writing, and a step on the texts that were written.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.measure import Cost, Outcome, Variant, measuring
from benchmarks.step import WARM_UP, arguments, model, tokenizer
from benchmarks.step import Settings as StepSettings


@dataclass(frozen=True)
class Settings(StepSettings):
    """Sizes of the work, as for `step`: `tokens` are the prompt and what is written after it."""

    batch: int = 16
    tokens: int = 64
    prompt: int = 32
    teacher: tuple[int, int, int] = (8, 512, 1376)
    steps: int = 2

    @classmethod
    def quick(cls) -> Settings:
        """Return sizes that take no time."""
        return cls(vocabulary=500, batch=4, tokens=16, prompt=8, student=(1, 32, 48), teacher=(2, 32, 48), steps=1)

    @property
    def written(self) -> int:
        """Number of tokens that are written after each prompt."""
        return self.tokens - self.prompt


def prompts(settings: Settings) -> Any:
    """Return the prompts of a step, `(batch, prompt)`."""
    import torch

    return torch.randint(3, settings.vocabulary, (settings.batch, settings.prompt), generator=_generator())


def _generator() -> Any:
    import torch

    return torch.Generator().manual_seed(7)


def student_of(settings: Settings) -> Any:
    """Return the student, which never ends a text before the last token."""
    made = model(settings, settings.student, 1)
    made.generation_config.eos_token_id = None
    made.config.eos_token_id = None
    return made


class Clock:
    """Times whole steps, writing included: from the end of the warm-up to the end of the last step."""

    def __init__(self, steps: int) -> None:
        from transformers import TrainerCallback

        clock = self
        self.started = self.seconds = 0.0

        class Callback(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                if state.global_step == WARM_UP:
                    clock.started = time.process_time()
                if state.global_step == WARM_UP + steps:
                    clock.seconds = (time.process_time() - clock.started) / steps

        self.callback = Callback()


def trained(make: Callable[[Settings, str, Any], Any]) -> Callable[[Settings], Outcome]:
    """Return a variant's `run`: what a trainer takes for a step, with its writing."""

    def run(settings: Settings) -> Outcome:
        from transformers.utils import logging

        logging.set_verbosity_error()
        clock = Clock(settings.steps)
        with tempfile.TemporaryDirectory() as directory:
            trainer = make(settings, directory, student_of(settings))
            trainer.add_callback(clock.callback)
            with measuring() as whole:
                trainer.train()
        losses = [one["loss"] for one in trainer.state.log_history if "loss" in one]
        return Outcome(Cost(clock.seconds, whole.peak_mib), {"loss": losses[-1]})

    return run


def _arguments(settings: Settings, directory: str, **more: Any) -> dict[str, Any]:
    logged = {"logging_strategy": "steps", "logging_steps": 1}
    return arguments(settings, directory, **logged, **more)


def ours(settings: Settings, directory: str, student: Any) -> Any:
    """`DistillationTrainer` with `completions`."""
    from datasets import Dataset

    from hf_distill import DistillationArguments, DistillationTrainer
    from hf_distill.completions.section import Completions
    from hf_distill.objectives import ReverseKL
    from hf_distill.tasks.language import PadTokens

    rows = [{"input_ids": one, "labels": [-100] * len(one)} for one in prompts(settings).tolist()]
    return DistillationTrainer(
        student,
        DistillationArguments(**_arguments(settings, directory)),
        teacher=model(settings, settings.teacher, 2),
        objectives=[ReverseKL()],
        completions=Completions(by="student", max_new_tokens=settings.written, temperature=0.0),
        train_dataset=Dataset.from_list(rows * (settings.steps + WARM_UP)),
        data_collator=PadTokens(0),
        processing_class=_without_end(settings),
    )


def _without_end(settings: Settings) -> Any:
    made = tokenizer(settings)
    made.eos_token = None
    return made


def parts(settings: Settings) -> Outcome:
    """Write, then train on what was written, each alone: an on-policy step can take no less than both."""
    from datasets import Dataset
    from transformers.utils import logging

    from hf_distill import DistillationArguments, DistillationTrainer
    from hf_distill.completions.backends import TransformersBackend
    from hf_distill.completions.sampling import Sampling
    from hf_distill.objectives import ReverseKL
    from hf_distill.tasks.language import PadTokens

    logging.set_verbosity_error()
    student, clock, given = student_of(settings), Clock(settings.steps), prompts(settings).tolist()
    writer = TransformersBackend().open(student, _without_end(settings))
    sampling = Sampling(settings.written, temperature=0.0)
    with measuring() as whole, tempfile.TemporaryDirectory() as directory:
        written = writer.write(given, sampling, 0)
        started = time.process_time()
        for _ in range(settings.steps):
            writer.write(given, sampling, 0)
        writing = (time.process_time() - started) / settings.steps
        rows = [
            {"input_ids": [*one, *more.ids], "labels": [-100] * len(one) + list(more.ids)}
            for one, more in zip(given, written, strict=True)
        ]
        trainer = DistillationTrainer(
            student,
            DistillationArguments(**_arguments(settings, directory)),
            teacher=model(settings, settings.teacher, 2),
            objectives=[ReverseKL()],
            train_dataset=Dataset.from_list(rows * (settings.steps + WARM_UP)),
            data_collator=PadTokens(0),
            callbacks=[clock.callback],
        )
        trainer.train()
    losses = [one["loss"] for one in trainer.state.log_history if "loss" in one]
    seconds = {"writing": writing, "the step": clock.seconds}
    return Outcome(Cost(sum(seconds.values()), whole.peak_mib), {"loss": losses[-1]}, parts=seconds)


def trl_gkd(settings: Settings, directory: str, student: Any) -> Any:
    """TRL's `GKDTrainer` with `lmbda` 1: every text is the student's."""
    import os

    import torch
    from datasets import Dataset
    from transformers import default_data_collator

    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    ids = prompts(settings)
    # Their loss is divided by the number of labels of the data, so it has as many as are written.
    whole = torch.cat((ids, torch.full((len(ids), settings.written), 3)), 1)
    labels = whole.clone()
    labels[:, : settings.prompt] = -100
    columns = {
        "prompts": ids,
        "prompt_attention_mask": torch.ones_like(ids),
        "input_ids": whole,
        "attention_mask": torch.ones_like(whole),
        "labels": labels,
    }
    more = {
        "lmbda": 1.0,
        "beta": 1.0,
        "temperature": 1.0,
        "max_new_tokens": settings.written,
        "gradient_checkpointing": False,
        "remove_unused_columns": False,
    }
    trainer = GKDTrainer(
        model=student,
        teacher_model=model(settings, settings.teacher, 2),
        args=GKDConfig(**_arguments(settings, directory, **more)),
        train_dataset=Dataset.from_dict(
            {name: value.tolist() * (settings.steps + WARM_UP) for name, value in columns.items()}
        ),
        data_collator=default_data_collator,
        processing_class=tokenizer(settings),
    )
    for config in (trainer.generation_config, trainer.generation_kwargs):
        _greedy(config)
    return trainer


def _greedy(config: Any) -> None:
    if isinstance(config, dict):
        config |= {"top_k": 1, "eos_token_id": None}
    else:
        config.top_k, config.eos_token_id = 1, None


def trl_stable(settings: Settings, directory: str, student: Any) -> Any:
    """TRL's `DistillationTrainer`, which knows on-policy distillation only."""
    from datasets import Dataset
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from trl import DistillationConfig, DistillationTrainer

    reader = tokenizer(settings)
    reader.backend_tokenizer.pre_tokenizer = WhitespaceSplit()
    texts = [" ".join(f"<{token}>" for token in row) for row in prompts(settings).tolist()]
    more = {
        "beta": 1.0,
        "temperature": 1.0,
        "top_k": 1,
        "max_completion_length": settings.written,
        "gradient_checkpointing": False,
        "remove_unused_columns": False,
        "shuffle_dataset": False,
    }
    return DistillationTrainer(
        model=student,
        teacher_model=model(settings, settings.teacher, 2),
        args=DistillationConfig(**_arguments(settings, directory, **more)),
        train_dataset=Dataset.from_dict({"prompt": texts * (settings.steps + WARM_UP)}),
        processing_class=reader,
    )


VARIANTS: dict[str, Variant] = {
    "ours": Variant(trained(ours), "**ours**, the student writes", "on-policy"),
    "parts": Variant(parts, "**ours**, the parts of the step alone: writing, and a step on the texts", "on-policy"),
    "trl": Variant(trained(trl_stable), "TRL `DistillationTrainer`", "on-policy", needs="trl"),
    "trl_gkd": Variant(trained(trl_gkd), "TRL `GKDTrainer`, lmbda 1", "on-policy", needs="trl"),
}
BASELINE = "trl"
RATIOS = (
    ("on-policy step, of TRL's DistillationTrainer", "trl", "ours"),
    ("on-policy step, of TRL's GKD", "trl_gkd", "ours"),
    ("on-policy step, of its parts alone", "parts", "ours"),
)
