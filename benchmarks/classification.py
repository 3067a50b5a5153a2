"""Classification at 43 % fill: an epoch of short texts, padded, or less so.

The learning rate is 0, so that the mean loss of an epoch does not depend on the order of its examples, and the variants
can be held to the same thing.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.measure import Cost, Outcome, Variant, measuring
from benchmarks.reading import timed


@dataclass(frozen=True)
class Settings:
    """Sizes of the work.

    Attributes:
        batch: Examples in a batch.
        examples: Of an epoch.
        longest: Tokens of the longest; their lengths are lognormal around 24, 27.5 on average.
        student: Layers and width of the student, a BERT.
        teacher: Likewise.
    """

    batch: int = 32
    examples: int = 256
    longest: int = 64
    student: tuple[int, int] = (4, 384)
    teacher: tuple[int, int] = (12, 384)

    @classmethod
    def quick(cls) -> Settings:
        """Return sizes that take no time."""
        return cls(batch=8, examples=32, student=(1, 32), teacher=(2, 32))


VOCABULARY = 1000


def model(settings: Settings, shape: tuple[int, int], seed: int) -> Any:
    """Return a BERT with random weights and without dropout, whose noise would differ between the variants."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    layers, width = shape
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 64),
        intermediate_size=4 * width,
        max_position_embeddings=settings.longest,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.1,
        num_labels=3,
    )
    return BertForSequenceClassification(config)


def data(settings: Settings) -> Any:
    """Return the examples."""
    import numpy as np
    from datasets import Dataset

    rng = np.random.default_rng(0)
    lengths = np.clip(np.exp(rng.normal(np.log(24), 0.55, settings.examples)).astype(int), 5, settings.longest)
    ids = [rng.integers(5, VOCABULARY, length).tolist() for length in lengths]
    labels = rng.integers(0, 3, settings.examples).tolist()
    return Dataset.from_dict({"input_ids": ids, "labels": labels, "length": lengths.tolist()})


def collate(width: int | None) -> Any:
    """Return a collator that pads to a width, or to the longest of a batch."""
    import torch

    def padded(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        longest = width or max(len(row["input_ids"]) for row in rows)
        ids, mask = (torch.zeros(len(rows), longest, dtype=torch.long) for _ in range(2))
        for place, row in enumerate(rows):
            ids[place, : len(row["input_ids"])] = torch.tensor(row["input_ids"])
            mask[place, : len(row["input_ids"])] = 1
        return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([row["labels"] for row in rows])}

    return padded


def loop(settings: Settings) -> Outcome:
    """What tutorials do: pad all to the longest there is, and loop."""
    import torch
    import torch.nn.functional as F

    student, teacher = model(settings, settings.student, 1).train(), model(settings, settings.teacher, 2).eval()
    optimizer = torch.optim.AdamW(student.parameters(), lr=0.0, weight_decay=0.0, fused=True)
    rows = list(data(settings))
    batches = [rows[start : start + settings.batch] for start in range(0, len(rows), settings.batch)]
    together = collate(settings.longest)

    def step(rows: list[dict[str, Any]]) -> float:
        batch = together(rows)
        labels = batch.pop("labels")
        with torch.no_grad():
            theirs = teacher(**batch).logits
        ours = student(**batch).logits
        soft = F.kl_div(
            F.log_softmax(ours / 2, -1), F.log_softmax(theirs / 2, -1), reduction="batchmean", log_target=True
        )
        loss = 0.5 * 4 * soft + 0.5 * F.cross_entropy(ours, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    step(batches[0])
    with measuring() as cost:
        losses = [step(rows) for rows in batches]
    return Outcome(cost, {"loss": sum(losses) / len(losses)}, per="epoch")


class Epoch:
    """Times the second epoch, as a callback of `Trainer`."""

    def __init__(self) -> None:
        from transformers import TrainerCallback

        clock = self
        self.seconds = 0.0

        class Callback(TrainerCallback):
            def on_epoch_begin(self, *_: Any, **__: Any) -> None:
                clock.seconds = -time.process_time()

            def on_epoch_end(self, *_: Any, **__: Any) -> None:
                clock.seconds += time.process_time()

        self.callback = Callback()


def on_layers(objectives: bool) -> tuple[Any, ...] | None:
    """Return the usual objectives and one on as many layers as the student has; None for the usual ones alone."""
    from hf_distill.objectives import Hidden, KLDivergence, Labels

    return (KLDivergence(weight=0.5, temperature=2.0), Labels(weight=0.5), Hidden()) if objectives else None


def from_cache(settings: Settings, args: Any, examples: Any, layers: bool = False) -> dict[str, Any]:
    """Return teacher, data and collator for a training from a cache, filled before anything is timed.

    Args:
        settings: Sizes.
        args: Of the training.
        examples: All of them.
        layers: Keep the hidden states that `on_layers` compares.
    """
    from pathlib import Path

    from hf_distill.cache.cache import Cache
    from hf_distill.cache.format import Kept
    from hf_distill.cache.replay import TrainingData
    from hf_distill.cache.requirements import states_of
    from hf_distill.rows.examples import ExampleRows

    teacher, layout = model(settings, settings.teacher, 2).eval(), ExampleRows(width=3)
    made = TrainingData(examples, examples.select(range(settings.batch)), collate(None), layout)
    student = model(settings, settings.student, 1)
    states = states_of(on_layers(layers) or (), (student.config, teacher.config))
    kept = Kept.of(teacher, layout, top=3, temperature=1.0, precision="float32", states=states)
    cache = Cache(made, teacher, kept, {}, Path(args.output_dir, "cache"))
    cache.fill(args)
    replayed, replay = cache.apply(made)
    return {
        "teacher": replay,
        "train_dataset": replayed.train,
        "data_collator": replayed.collator,
        "layout": layout,
    }


def trained(
    width: bool = False,
    cached: bool = False,
    layers: bool = False,
    padding_free: bool | str = False,
    rows: Callable[[Any], Any] = data,
    **more: Any,
) -> Any:
    """Return a variant's `run`: `DistillationTrainer`.

    Args:
        width: Pad to the longest there is.
        cached: Take the teacher's logits from a cache.
        layers: Compare hidden states too.
        padding_free: Whether layers run without padding.
        rows: Returns the examples.
        more: Training arguments.
    """

    def run(settings: Settings) -> Outcome:
        from transformers.utils import logging

        from hf_distill import DistillationArguments, DistillationTrainer

        logging.set_verbosity_error()
        clock = Epoch()
        with tempfile.TemporaryDirectory() as directory:
            args = DistillationArguments(
                output_dir=directory,
                **{"per_device_train_batch_size": settings.batch, **more},
                num_train_epochs=2,
                learning_rate=0.0,
                logging_strategy="no",
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                dataloader_pin_memory=False,
                padding_free=padding_free,
            )
            examples = rows(settings)
            parts = (
                from_cache(settings, args, examples, layers)
                if cached
                else {
                    "teacher": model(settings, settings.teacher, 2),
                    "train_dataset": examples,
                    "data_collator": collate(settings.longest if width else None),
                }
            )
            student = model(settings, settings.student, 1)
            trainer = DistillationTrainer(student, args, objectives=on_layers(layers), **parts)
            trainer.add_callback(clock.callback)
            read = timed(trainer)
            with measuring() as whole:
                output = trainer.train()
        second = slice(-(-settings.examples // settings.batch), None)
        cost = Cost(clock.seconds, whole.peak_mib)
        return Outcome(cost, {"loss": output.training_loss}, per="epoch", parts=read(second))

    return run


VARIANTS: dict[str, Variant] = {
    "loop": Variant(loop, "a loop, all padded to the longest of all", "kl + labels"),
    "padded": Variant(trained(width=True), "**ours**, all padded to the longest of all", "kl + labels"),
    "dynamic": Variant(trained(), "**ours**, padded to the longest of the batch", "kl + labels"),
    "grouped": Variant(
        trained(train_sampling_strategy="group_by_length"), "**ours**, batches of like length", "kl + labels"
    ),
    "cached": Variant(
        trained(cached=True),
        "**ours**, from a cache, padded to the longest of the batch",
        "kl + labels",
        needs="hf_distill.cache.cache",
    ),
    "cached_grouped": Variant(
        trained(cached=True, train_sampling_strategy="group_by_length"),
        "**ours**, from a cache, batches of like length",
        "kl + labels",
        needs="hf_distill.cache.cache",
    ),
    "padding_free": Variant(trained(padding_free="auto"), "**ours**, padding-free", "kl + labels"),
    "cached_padding_free": Variant(
        trained(cached=True, padding_free="auto"),
        "**ours**, from a cache, padding-free",
        "kl + labels",
        needs="hf_distill.cache.cache",
    ),
    "layers": Variant(
        trained(layers=True),
        "**ours**, and four layers compared, padded to the longest of the batch",
        "and layers",
        1e-3,
    ),
    "cached_layers": Variant(
        trained(cached=True, layers=True),
        "**ours**, and four layers compared, from a cache, padded to the longest of the batch",
        "and layers",
        1e-3,
        needs="hf_distill.cache.cache",
    ),
}
BASELINE = "loop"
RATIOS = (
    ("the trainer, time relative to a loop", "padded", "loop"),
    ("batches of like length, of a loop", "loop", "grouped"),
    ("cached, of a loop", "loop", "cached"),
    ("cached and of like length, of a loop", "loop", "cached_grouped"),
    ("padding-free, of a loop", "loop", "padding_free"),
    ("cached and padding-free, of a loop", "loop", "cached_padding_free"),
    ("cached, with layers, of the same online", "layers", "cached_layers"),
)
