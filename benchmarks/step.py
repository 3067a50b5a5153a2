"""Whole optimiser steps of language-model distillation, each by the trainer that a user would take.

All compute `KL(teacher || student)` at temperature 1 over the tokens of the completion, `finetune` cross-entropy over
them. The learning rate is 0: AdamW does all of its work and every step has the same loss, which is how the variants are
held to the same thing.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.measure import Cost, Outcome, Variant, measuring
from benchmarks.reading import timed

WARM_UP = 1


@dataclass(frozen=True)
class Settings:
    """Sizes of the work.

    Attributes:
        vocabulary: Of both models.
        batch: Examples in a step.
        tokens: Of each example.
        prompt: How many of them are the prompt, which does not count.
        student: Layers, width and width of the feed-forward layers of the student, a Llama.
        teacher: Likewise.
        kept: Classes that a cache keeps of a row.
        steps: How many are measured, after one to warm up.
        uneven: Give the examples lengths of their own, as instructions have: `tokens` is the longest's, a quarter of
            each is its prompt, and the rest is padding.
        bf16: Train in mixed precision.
    """

    vocabulary: int = 32000
    batch: int = 4
    tokens: int = 512
    prompt: int = 128
    student: tuple[int, int, int] = (4, 256, 704)
    teacher: tuple[int, int, int] = (8, 512, 1376)
    kept: int = 64
    steps: int = 1
    uneven: bool = False
    bf16: bool = False

    @classmethod
    def quick(cls) -> Settings:
        """Return sizes that take no time, and a cache that keeps everything."""
        return cls(vocabulary=500, tokens=24, prompt=6, student=(1, 32, 48), teacher=(2, 32, 48), kept=500, steps=1)


def model(settings: Settings, shape: tuple[int, int, int], seed: int) -> Any:
    """Return a Llama with random weights: what it costs does not depend on them."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    layers, width, inner = shape
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=settings.vocabulary,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=max(1, width // 64),
            intermediate_size=inner,
            max_position_embeddings=settings.tokens,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            initializer_range=0.05,  # logits as far apart as those of trained models, so that losses say something
        )
    )


def data(settings: Settings) -> Any:
    """Return as many examples as the steps take, each step's the same."""
    import torch
    from datasets import Dataset

    torch.manual_seed(7)
    ids = torch.randint(3, settings.vocabulary, (settings.batch, settings.tokens))
    labels = ids.clone()
    mask = torch.ones_like(ids)
    if settings.uneven:
        # Lognormal around a third of the longest; the first is the longest.
        lengths = (settings.tokens / 3 * torch.randn(settings.batch).mul(0.6).exp()).long()
        lengths = lengths.clamp(settings.tokens // 16, settings.tokens)
        lengths[0] = settings.tokens
        place = torch.arange(settings.tokens)
        mask = (place < lengths.unsqueeze(1)).long()
        labels[(place < lengths.unsqueeze(1) // 4) | (mask == 0)] = -100
        ids = ids * mask
    else:
        labels[:, : settings.prompt] = -100
    rows = {"input_ids": ids.tolist(), "attention_mask": mask.tolist(), "labels": labels.tolist()}
    return Dataset.from_dict({name: value * (settings.steps + WARM_UP) for name, value in rows.items()})


def arguments(settings: Settings, directory: str, **more: Any) -> dict[str, Any]:
    """Return the training arguments that all have in common."""
    return {
        "output_dir": directory,
        "per_device_train_batch_size": settings.batch,
        "max_steps": settings.steps + WARM_UP,
        "learning_rate": 0.0,
        "bf16": settings.bf16,
        "use_cpu": True,
        "train_sampling_strategy": "sequential",
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        **more,
    }


class Clock:
    """Times the steps after the first ones, as a callback of `Trainer`."""

    def __init__(self, steps: int) -> None:
        from transformers import TrainerCallback

        clock = self
        self.started = self.seconds = 0.0

        class Callback(TrainerCallback):
            def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                if state.global_step == WARM_UP:
                    clock.started = time.process_time()

            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                if state.global_step == WARM_UP + steps:
                    clock.seconds = (time.process_time() - clock.started) / steps

        self.callback = Callback()


Make = Callable[[Settings, str, Any, Any], Any]


def trained(make: Make, **changes: Any) -> Callable[[Settings], Outcome]:
    """Return a variant's `run`: what a trainer takes for a step."""

    def run(settings: Settings) -> Outcome:
        from dataclasses import replace

        from transformers.utils import logging

        logging.set_verbosity_error()
        settings = replace(settings, **changes)
        clock = Clock(settings.steps)
        with tempfile.TemporaryDirectory() as directory:
            trainer = make(settings, directory, model(settings, settings.student, 1), data(settings))
            trainer.add_callback(clock.callback)
            read = timed(trainer)
            with measuring() as whole:
                output = trainer.train()
        parts = {name: seconds / settings.steps for name, seconds in read(slice(WARM_UP, None)).items()}
        return Outcome(Cost(clock.seconds, whole.peak_mib), {"loss": output.training_loss}, parts=parts)

    return run


def finetune(settings: Settings, directory: str, student: Any, examples: Any) -> Any:
    """Plain fine-tuning: no teacher."""
    from transformers import Trainer, TrainingArguments, default_data_collator

    args = TrainingArguments(**arguments(settings, directory))
    return Trainer(student, args, train_dataset=examples, data_collator=default_data_collator)


def naive(settings: Settings, directory: str, student: Any, examples: Any) -> Any:
    """What tutorials do: a `Trainer` whose loss runs both models and compares all logits."""
    import torch
    import torch.nn.functional as F
    from transformers import Trainer, TrainingArguments, default_data_collator

    teacher = model(settings, settings.teacher, 2).eval()

    class Naive(Trainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
            labels = inputs.pop("labels")
            with torch.no_grad():
                theirs = teacher(**inputs).logits
            outputs = model(**inputs)
            counted = labels[:, 1:] != -100
            ours, theirs = outputs.logits[:, :-1][counted], theirs[:, :-1][counted]
            loss = F.kl_div(
                F.log_softmax(ours.float(), -1),
                F.log_softmax(theirs.float(), -1),
                reduction="batchmean",
                log_target=True,
            )
            return (loss, outputs) if return_outputs else loss

    args = TrainingArguments(**arguments(settings, directory))
    return Naive(student, args, train_dataset=examples, data_collator=default_data_collator)


def online(objective: str, teacher_dtype: str = "float32", padding_free: bool | str = False) -> Make:
    """`DistillationTrainer`."""

    def make(settings: Settings, directory: str, student: Any, examples: Any) -> Any:
        import torch
        from transformers import default_data_collator

        from hf_distill import DistillationArguments, DistillationTrainer
        from hf_distill.objectives import OBJECTIVES

        trainer = DistillationTrainer(
            student,
            DistillationArguments(**arguments(settings, directory), padding_free=padding_free),
            teacher=model(settings, settings.teacher, 2).to(getattr(torch, teacher_dtype)),
            objectives=[OBJECTIVES[objective]()],
            train_dataset=examples,
            data_collator=default_data_collator,
        )
        assert trainer._heads is not None, "it would make all logits"
        return trainer

    return make


def itself(average: bool) -> Make:
    """`DistillationTrainer` whose teacher is a copy of the student: frozen, or the moving average of its weights."""

    def make(settings: Settings, directory: str, student: Any, examples: Any) -> Any:
        import copy

        from transformers import default_data_collator

        from hf_distill import DistillationArguments, DistillationTrainer
        from hf_distill.objectives import KLDivergence, Labels
        from hf_distill.teachers.ema import Ema

        return DistillationTrainer(
            student,
            DistillationArguments(**arguments(settings, directory)),
            teacher=Ema() if average else copy.deepcopy(student),
            objectives=[KLDivergence(weight=0.5), Labels(weight=0.5)],
            train_dataset=examples,
            data_collator=default_data_collator,
        )

    return make


def cached(settings: Settings, directory: str, student: Any, examples: Any) -> Any:
    """`DistillationTrainer` with a teacher's likeliest classes from a cache, filled before anything is timed."""
    from pathlib import Path

    from transformers import default_data_collator

    from hf_distill import DistillationArguments, DistillationTrainer
    from hf_distill.cache.cache import Cache
    from hf_distill.cache.format import Kept
    from hf_distill.cache.replay import TrainingData
    from hf_distill.objectives import KLDivergence
    from hf_distill.rows.tokens import TokenRows

    teacher, layout = model(settings, settings.teacher, 2).eval(), TokenRows(shift=True)
    args = DistillationArguments(**arguments(settings, directory))
    examples = examples.add_column("length", [settings.tokens] * len(examples))
    made = TrainingData(examples, examples.select(range(settings.batch)), default_data_collator, layout)
    kept = Kept.of(teacher, layout, top=settings.kept, temperature=1.0, precision="float16")
    cache = Cache(made, teacher, kept, {}, Path(directory, "cache"))
    cache.fill(args)
    replayed, replay = cache.apply(made)
    return DistillationTrainer(
        student,
        args,
        teacher=replay,
        objectives=[KLDivergence()],
        layout=layout,
        train_dataset=replayed.train,
        data_collator=replayed.collator,
    )


def tokenizer(settings: Settings) -> Any:
    """Return one, because TRL's trainer wants one; it reads nothing."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    # With brackets, since a special token is also found within a word.
    words = {f"<{index}>": index for index in range(settings.vocabulary)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="<3>")), pad_token="<0>", bos_token="<1>", eos_token="<2>"
    )


def trl(beta: float) -> Make:
    """TRL's `GKDTrainer`, on the completions of the data set only (`lmbda=0`)."""

    def make(settings: Settings, directory: str, student: Any, examples: Any) -> Any:
        import os

        os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
        from transformers import default_data_collator
        from trl.experimental.gkd import GKDConfig, GKDTrainer

        more = {"lmbda": 0.0, "beta": beta, "gradient_checkpointing": False}
        return GKDTrainer(
            model=student,
            teacher_model=model(settings, settings.teacher, 2),
            args=GKDConfig(**arguments(settings, directory, **more)),
            train_dataset=examples,
            data_collator=default_data_collator,
            processing_class=tokenizer(settings),
        )

    return make


def bare(settings: Settings) -> Outcome:
    """Run a loop with `DistillationTrainer`'s kernels and nothing around them: what the trainer adds is overhead."""
    import torch

    from hf_distill.objectives import KLDivergence
    from hf_distill.rows.tokens import TokenRows
    from hf_distill.training.chunked.heads import Heads

    student, teacher = model(settings, settings.student, 1).train(), model(settings, settings.teacher, 2).eval()
    teacher.requires_grad_(False)
    columns = data(settings).with_format("torch")[: settings.batch]
    taken = {name: columns[name] for name in ("input_ids", "attention_mask")}
    heads, layout, objectives = Heads.open(student, {"teacher": teacher}), TokenRows(shift=True), [KLDivergence()]
    assert heads is not None
    decayed = [one for one in student.parameters() if one.ndim > 1]
    others = [one for one in student.parameters() if one.ndim == 1]
    groups = [{"params": decayed, "weight_decay": 0.0}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.0, fused=True)
    context = torch.autocast("cpu", dtype=torch.bfloat16, enabled=settings.bf16)
    loss = torch.zeros(())
    seconds = 0.0
    with measuring() as whole:
        for step in range(settings.steps + WARM_UP):
            before = time.process_time()
            with context:
                with heads.capturing():
                    with torch.no_grad():
                        teacher(**taken, use_cache=False)
                    student(**taken, use_cache=False)
                rows = heads.rows(layout, columns)
                coefficients = torch.ones(1) / len(rows.labels)
                loss = (rows.sums_in_chunks(objectives, coefficients).sum(0) * coefficients).sum()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            if step >= WARM_UP:
                seconds += time.process_time() - before
    return Outcome(Cost(seconds / settings.steps, whole.peak_mib), {"loss": loss.item()})


def bare_bf16(settings: Settings) -> Outcome:
    """Likewise, in mixed precision."""
    from dataclasses import replace

    return bare(replace(settings, bf16=True))


def _both(name: str, make: Make, title: str, group: str | None, needs: str | None = None) -> dict[str, Variant]:
    """Return a variant in both precisions; bfloat16 has two digits."""
    half = None if group is None else f"{group}, bf16"
    return {
        name: Variant(trained(make), title, group, 1e-3, needs),
        f"{name}_bf16": Variant(trained(make, bf16=True), f"{title}, bf16", half, 2e-2, needs),
    }


VARIANTS: dict[str, Variant] = {
    **_both("finetune", finetune, "`Trainer`, plain fine-tuning", None),
    **_both("naive", naive, "naive: a `Trainer` with all logits, KL", "kl"),
    **_both("online", online("kl"), "**ours**, KL", "kl"),
    "online_bf16_teacher": Variant(
        trained(online("kl", "bfloat16")), "**ours**, KL, teacher in bf16, student in fp32", "kl", 2e-2
    ),
    **_both("trl_kl", trl(0.0), "TRL `GKDTrainer`, KL", "kl", "trl"),
    **_both("online_js", online("js"), "**ours**, Jensen-Shannon", "js"),
    **_both("trl_js", trl(0.5), "TRL `GKDTrainer`, its default (Jensen-Shannon)", "js", "trl"),
    **_both("copy", itself(False), "**ours**, a frozen copy of the student as teacher", "copy"),
    **_both("ema", itself(True), "**ours**, the student's moving average as teacher", "copy"),
    **_both("cached", cached, "**ours**, from a cache of the top 64, KL", None, "hf_distill.cache.cache"),
    "uneven_naive": Variant(trained(naive, uneven=True, batch=8), "naive, uneven lengths, KL", "kl, uneven", 1e-3),
    "uneven_padded": Variant(
        trained(online("kl"), uneven=True, batch=8), "**ours**, uneven lengths, padded, KL", "kl, uneven", 1e-3
    ),
    "uneven_padding_free": Variant(
        trained(online("kl", padding_free="auto"), uneven=True, batch=8),
        "**ours**, uneven lengths, padding-free, KL",
        "kl, uneven",
        1e-3,
    ),
    "bare": Variant(bare, "our kernels in a bare loop, KL", "kl", 1e-3),
    "bare_bf16": Variant(bare_bf16, "our kernels in a bare loop, KL, bf16", "kl, bf16", 2e-2),
}
BASELINE = "naive"
RATIOS = (
    ("online step, of naive", "naive", "online"),
    ("online step, of TRL's GKD, KL", "trl_kl", "online"),
    ("online step, of TRL's GKD, its default", "trl_js", "online_js"),
    ("online step with a teacher in bf16, of naive", "naive", "online_bf16_teacher"),
    ("online step in bf16, of naive in bf16", "naive_bf16", "online_bf16"),
    ("online step in bf16, of naive in fp32", "naive", "online_bf16"),
    ("online step in bf16, of TRL's GKD, KL, in bf16", "trl_kl_bf16", "online_bf16"),
    ("online step, time relative to plain fine-tuning", "online", "finetune"),
    ("cached step, of naive", "naive", "cached"),
    ("cached step, time relative to plain fine-tuning", "cached", "finetune"),
    ("cached step in bf16, of naive in bf16", "naive_bf16", "cached_bf16"),
    ("cached step in bf16, time relative to plain fine-tuning in bf16", "cached_bf16", "finetune_bf16"),
    ("step with the moving average, of a frozen copy as teacher", "copy", "ema"),
    ("step with the moving average in bf16, of a frozen copy in bf16", "copy_bf16", "ema_bf16"),
    ("the trainer, time relative to a bare loop", "online", "bare"),
    ("uneven lengths: padding-free, of naive", "uneven_naive", "uneven_padding_free"),
    ("uneven lengths: padding-free, of padded", "uneven_padded", "uneven_padding_free"),
)
