"""What many short rows cost in memory: read, tokenised and gone through once in shuffled batches, without a model.

`datasets` is what a `Trainer` script does: `load_dataset`, `map`, a shuffled loader. Ours are a run of a recipe and
`DistillationTrainer`, up to their batches. The figure that counts is the peak memory, so nothing is computed.
"""

from __future__ import annotations

import csv
import os
import random
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.measure import Outcome, Variant, measuring


@dataclass(frozen=True)
class Settings:
    """Sizes of the work.

    Attributes:
        rows: Number of rows, each a text of 3 to 12 words and its class.
        batch: Examples in a batch.
    """

    rows: int = 200_000
    batch: int = 256

    @classmethod
    def quick(cls) -> Settings:
        """Return sizes that take no time."""
        return cls(rows=600, batch=16)


WORDS = tuple(f"word{number}" for number in range(500))


@contextmanager
def written(settings: Settings) -> Iterator[tuple[str, str]]:
    """Context manager: a train file and a small eval file, and a cache of `datasets` that is empty."""
    import datasets

    chance = random.Random(0)
    held = datasets.config.HF_DATASETS_CACHE
    with tempfile.TemporaryDirectory() as place:
        datasets.config.HF_DATASETS_CACHE = Path(place, "cache")
        paths = [os.path.join(place, f"{name}.csv") for name in ("train", "eval")]
        for path, rows in zip(paths, (settings.rows, 100), strict=True):
            with open(path, "w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                writer.writerow(["text", "label"])
                for row in range(rows):
                    writer.writerow([" ".join(chance.choices(WORDS, k=chance.randint(3, 12))), f"class {row % 3}"])
        yield paths[0], paths[1]
        datasets.config.HF_DATASETS_CACHE = held


def tokenizer() -> Any:
    """Return a tokenizer of the words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate(("[PAD]", "[UNK]", *WORDS))}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))  # type: ignore[call-arg]
    made.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", model_max_length=64)


def model() -> Any:
    """Return a tiny classifier, which is never run."""
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=len(WORDS) + 2, hidden_size=16, num_hidden_layers=1, num_attention_heads=1, intermediate_size=16
    )
    config.id2label = {number: f"class {number}" for number in range(3)}
    config.label2id = {name: number for number, name in config.id2label.items()}
    return BertForSequenceClassification(config)


def trainer(args: Any, **data: Any) -> Any:
    """Return a trainer of two tiny models."""
    from hf_distill import DistillationTrainer

    return DistillationTrainer(model(), args, teacher=model(), **data)


def arguments(settings: Settings, **more: Any) -> Any:
    """Return the training arguments."""
    from hf_distill import DistillationArguments

    place = tempfile.mkdtemp()
    return DistillationArguments(
        place, per_device_train_batch_size=settings.batch, report_to=[], disable_tqdm=True, use_cpu=True, **more
    )


def measured(batches: Callable[[Settings, str, str], Iterable[Any]]) -> Callable[[Settings], Outcome]:
    """Return a variant's `run`: go through the batches once.

    Args:
        batches: Makes them from a train and an eval file.
    """

    def run(settings: Settings) -> Outcome:
        import datasets
        from transformers.utils import logging

        import hf_distill.run.preparation  # noqa: F401  # imported before anything is measured

        datasets.disable_progress_bars()
        logging.set_verbosity_error()
        with written(settings) as files:
            for _ in batches(Settings.quick(), files[1], files[1]):  # what the first use of everything takes
                pass
            tokens = rows = 0
            with measuring() as cost:
                for batch in batches(settings, *files):
                    rows += len(batch["input_ids"])
                    tokens += int(batch["attention_mask"].sum())
        return Outcome(cost, {"loss": tokens / max(rows, 1), "rows": float(rows)}, per="epoch")

    return run


def of_datasets(settings: Settings, train: str, _: str) -> Iterable[Any]:
    """Yield batches as a script without this package makes them."""
    from datasets import load_dataset
    from torch.utils.data import DataLoader
    from transformers import DataCollatorWithPadding

    words = tokenizer()
    split = load_dataset("csv", data_files={"train": train}, split="train")
    split = split.map(lambda rows: words(rows["text"], truncation=True), batched=True, remove_columns=["text", "label"])
    yield from DataLoader(split, settings.batch, shuffle=True, collate_fn=DataCollatorWithPadding(words))


def of_run(settings: Settings, train: str, evaluated: str, **more: Any) -> Iterable[Any]:
    """Yield the batches of a run of a recipe."""
    from hf_distill.data.loading import load_splits
    from hf_distill.data.section import Data
    from hf_distill.run.task_trainer import TaskTrainer
    from hf_distill.tasks import Setup
    from hf_distill.tasks.base import classes_of
    from hf_distill.tasks.text_classification import TextClassification

    task, words = TextClassification(), tokenizer()
    splits = load_splits(Data(path={"train": train, "eval": evaluated}), task.roles)
    config = model().config
    prepared = task.prepare(splits, Setup(words, teacher=config, student=config, max_length=64))
    classes_of(prepared)
    args = arguments(settings, **more)
    yield from TaskTrainer(
        prepared, model(), args, teacher=model(), train_dataset=prepared.train, processing_class=words
    ).get_train_dataloader()


def of_trainer(settings: Settings, train: str, _: str) -> Iterable[Any]:
    """Yield the batches of `DistillationTrainer` on a data set of text."""
    from datasets import load_dataset

    split = load_dataset("csv", data_files={"train": train}, split="train")
    yield from trainer(arguments(settings), train_dataset=split, processing_class=tokenizer()).get_train_dataloader()


def of_stream(settings: Settings, train: str, _: str) -> Iterable[Any]:
    """Yield the batches of `DistillationTrainer` on a stream of text, as many as there are rows."""
    from datasets import load_dataset

    stream = load_dataset("csv", data_files={"train": train}, split="train", streaming=True)
    rows = 100 if settings == Settings.quick() else settings.rows  # then the file is the small one
    steps = -(-rows // settings.batch)
    made = trainer(arguments(settings, max_steps=steps), train_dataset=stream, processing_class=tokenizer())
    yield from islice(made.get_train_dataloader(), steps)


VARIANTS: dict[str, Variant] = {
    "datasets": Variant(measured(of_datasets), "`datasets`: load, map, a shuffled loader", "rows"),
    "ours_trainer": Variant(measured(of_trainer), "**ours**, `DistillationTrainer` on text", "rows"),
    "ours_run": Variant(measured(of_run), "**ours**, a run of a recipe", "rows"),
    "ours_grouped": Variant(
        measured(lambda *given: of_run(*given, train_sampling_strategy="group_by_length")),
        "**ours**, a run, batches of like length",
        "rows",
    ),
    "ours_stream": Variant(measured(of_stream), "**ours**, `DistillationTrainer` on a stream of text"),
}
BASELINE = "datasets"
RATIOS = (
    ("a run, of `datasets`", "ours_run", "datasets"),
    ("a stream, of `datasets`", "ours_stream", "datasets"),
)
