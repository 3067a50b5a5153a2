"""Texts that are streamed: the same examples as in a data set, whatever processes, workers and interruptions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from datasets import Dataset, IterableDataset
from forked import two_processes
from invariants.worker import Stop

from hf_distill import DistillationArguments, DistillationTrainer, UserError, evaluate_distillation
from hf_distill.objectives import KLDivergence, Labels
from hf_distill.tasks import TextGeneration
from hf_distill.teachers import CachedTeacher, PretrainedTeacher
from hf_distill.training import streams

if TYPE_CHECKING:
    from conftest import MakeModel

WORDS = (
    "the",
    "film",
    "plot",
    "is",
    "dull",
    "great",
    "charming",
    "cast",
    "moving",
    "story",
    "boring",
    "fresh",
    "funny",
)
TEXTS = [" ".join(WORDS[(row * 7 + place * 3) % len(WORDS)] for place in range(2 + row % 9)) for row in range(24)]
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "classes": (
        "bert",
        "AutoModelForSequenceClassification",
        {"text": TEXTS, "label": [("positive", "negative", None)[row % 3] for row in range(24)]},
    ),
    "words": (
        "bert-tokens",
        "AutoModelForTokenClassification",
        {"tokens": [text.split() for text in TEXTS], "tags": [["negative"] * len(text.split()) for text in TEXTS]},
    ),
    "masked": ("bert-mlm", "AutoModelForMaskedLM", {"text": TEXTS}),
    "language": ("llama-lm", "AutoModelForCausalLM", {"text": ["", *TEXTS[1:]]}),
    "completions": ("llama-lm", "AutoModelForCausalLM", {"prompt": TEXTS, "completion": [" it is"] * 24}),
    "translations": ("t5", "AutoModelForSeq2SeqLM", {"source": TEXTS, "target": TEXTS[::-1]}),
}


def stream(data: dict[str, Any], shards: int = 2) -> IterableDataset:
    return Dataset.from_dict(data).to_iterable_dataset(num_shards=shards)


def arguments(directory: Path, **settings: Any) -> DistillationArguments:
    quiet: dict[str, Any] = {"disable_tqdm": True, "use_cpu": True, "save_strategy": "no", "report_to": "none"}
    # Not Adam, whose steps do not shrink with the gradient: where that is rounding, so are they.
    quiet |= {"optim": "sgd", "learning_rate": 0.1}
    steps = {"max_steps": 3, "per_device_train_batch_size": 8, "logging_steps": 1}
    return DistillationArguments(str(directory), **{**quiet, **steps, **settings})


class Made:
    """Makes trainers of one kind."""

    def __init__(self, make_model: MakeModel, kind: str, dropout: bool = False) -> None:
        name, self.auto_class, self.columns = KINDS[kind]
        self.paths = make_model(name, layers=2, seed=1), make_model(name, layers=1)
        self.dropout = dropout

    def config(self, path: Any) -> Any:
        config = transformers.AutoConfig.from_pretrained(path)
        for name in vars(config) if not self.dropout else ():
            if "dropout" in name:
                setattr(config, name, 0.0)
        return config

    def __call__(self, directory: Path, train: Any, **settings: Any) -> DistillationTrainer:
        teacher, student = (
            getattr(transformers, self.auto_class).from_pretrained(path, dtype=torch.float32, config=self.config(path))
            for path in self.paths
        )
        given = {name: settings.pop(name) for name in ("eval_dataset", "task", "objectives") if name in settings}
        given["teacher"] = settings.pop("teacher", teacher)
        tokenizer = transformers.AutoTokenizer.from_pretrained(self.paths[1])
        args = arguments(directory, **settings)
        return DistillationTrainer(student, args, train_dataset=train, processing_class=tokenizer, **given)


def weights(trainer: DistillationTrainer, **settings: Any) -> dict[str, torch.Tensor]:
    trainer.train(**settings)
    assert trainer.model is not None
    return {name: value.detach().clone() for name, value in trainer.model.state_dict().items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("kind", KINDS)
def test_as_a_data_set_in_the_same_order(make_model: MakeModel, tmp_path: Path, kind: str) -> None:
    """Other tokens or labels than those of the same texts as a data set would train, and nothing would tell."""
    make = Made(make_model, kind)
    data = Dataset.from_dict(make.columns)
    plain = make(tmp_path, data, eval_dataset=data, train_sampling_strategy="sequential")
    wanted = list(plain.train_dataset)  # type: ignore[arg-type]
    trainer = make(tmp_path, stream(make.columns), eval_dataset=stream(make.columns))
    found = [example for example, _ in zip(trainer.train_dataset, wanted, strict=False)]  # type: ignore[arg-type]
    assert found == wanted
    assert len(trainer.eval_dataset) == len(wanted)  # type: ignore[arg-type]
    steps = 3 if len(wanted) % 8 == 0 else 2
    plain.args.max_steps = trainer.args.max_steps = steps
    assert equal(weights(trainer), weights(plain))
    assert trainer.evaluate()["eval_loss"] == pytest.approx(plain.evaluate()["eval_loss"], rel=1e-6)


def test_workers_accumulation_and_more_than_one_pass(make_model: MakeModel, tmp_path: Path) -> None:
    """Workers that each read other files change the order; rows at the end of a pass would be lost or counted twice."""
    make = Made(make_model, "classes")
    raw = stream(make.columns).shuffle(seed=3, buffer_size=6)
    settings = {"max_steps": 5, "max_grad_norm": 0.0}
    alone = weights(make(tmp_path, raw, **settings))
    workers = weights(make(tmp_path, raw, dataloader_num_workers=2, **settings))
    assert equal(alone, workers)
    split = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, **settings}
    for others in (split, {"max_tokens_per_batch": 24, **settings}):
        found = weights(make(tmp_path, raw, **others))
        assert all(torch.allclose(one, found[name], atol=1e-5) for name, one in alone.items())


def test_two_processes_see_the_rows_of_one(make_model: MakeModel, tmp_path: Path) -> None:
    """Processes that both train on all rows, or on rows of their own choice, take other steps than one process."""
    make = Made(make_model, "classes")
    raw = stream(make.columns).shuffle(seed=3, buffer_size=6)

    def work() -> Any:
        return weights(make(tmp_path, raw, max_steps=5, per_device_train_batch_size=4))

    one, other = two_processes(work, tmp_path / "results")
    alone = weights(make(tmp_path, raw, max_steps=5))
    assert equal(one, other)
    assert all(torch.allclose(value, alone[name], atol=1e-5) for name, value in one.items())


@pytest.mark.parametrize("step", [2, 4])
def test_resumed(make_model: MakeModel, tmp_path: Path, step: int) -> None:
    """A resumed training that begins the stream again, or another pass of it, trains on rows twice."""
    make = Made(make_model, "classes", dropout=True)
    settings = {"max_steps": 6, "save_strategy": "steps", "save_steps": 1}
    raw = stream(make.columns).shuffle(seed=3, buffer_size=6)
    straight = weights(make(tmp_path / "whole", raw, **settings))
    first = make(tmp_path / "halves", raw, **settings)
    first.add_callback(Stop(step))
    first.train()
    checkpoint = str(tmp_path / "halves" / f"checkpoint-{step}")
    assert equal(straight, weights(make(tmp_path / "halves", raw, **settings), resume_from_checkpoint=checkpoint))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_label_that_turns_up_late(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """A class that the first rows lack must not move the others, nor end in a traceback of the collator."""
    monkeypatch.setattr(streams, "FIRST", 8)
    monkeypatch.setattr(streams, "_CHUNK", 5)
    make = Made(make_model, "classes")
    columns = {**make.columns, "label": ["positive", "negative"] * 8 + ["neither"] + ["positive"] * 7}
    trainer = make(tmp_path, stream(columns), dataloader_num_workers=workers)
    with pytest.raises(UserError, match=r"row 16 of the stream.*neither") as error:
        trainer.train()
    assert "\n" not in str(error.value)


def test_rows_that_make_no_example(make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few empty texts one after the other are dropped, as in a data set: they are not a split without examples."""
    monkeypatch.setattr(streams, "_CHUNK", 4)
    make = Made(make_model, "language")
    columns = {"text": [*TEXTS[:6], *[""] * 12, *TEXTS[18:]]}
    wanted = list(make(tmp_path, Dataset.from_dict(columns)).train_dataset)  # type: ignore[arg-type]
    found = iter(make(tmp_path, stream(columns)).train_dataset)  # type: ignore[arg-type]
    assert len(wanted) == 12
    assert [next(found) for _ in range(24)] == [*wanted, *wanted]


def test_a_stream_of_unknown_columns(make_model: MakeModel, tmp_path: Path) -> None:
    """Generators do not say which columns they have; an empty one would be read without end."""
    make = Made(make_model, "classes")

    def rows() -> Iterator[dict[str, Any]]:
        for row in range(24):
            yield {name: values[row] for name, values in make.columns.items()}

    made = make(tmp_path, IterableDataset.from_generator(rows))
    made.train()
    assert made.state.global_step == 3
    with pytest.raises(UserError, match="no rows"):
        make(tmp_path, stream(make.columns).filter(lambda row: False))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_steps": -1}, "max_steps"),
        ({"train_sampling_strategy": "group_by_length"}, "group_by_length"),
        ({"objectives": [KLDivergence(), Labels(class_weights="balanced")]}, "balanced"),
        ({"accelerator_config": {"dispatch_batches": True}}, "dispatch_batches"),
        ({"teacher": "cached"}, "cached"),
    ],
)
def test_what_a_stream_cannot_do(make_model: MakeModel, tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    """What needs all rows first would read a stream without end, or quietly use the first rows."""
    make = Made(make_model, "classes")
    if settings.get("teacher") == "cached":
        settings = {"teacher": CachedTeacher(teacher=PretrainedTeacher(model=str(make.paths[0])))}
    with pytest.raises(UserError, match=message):
        make(tmp_path, stream(make.columns), **settings)


def test_packing_and_reports(make_model: MakeModel, tmp_path: Path) -> None:
    """Blocks would end where a few rows end; a baseline on no rows would look like a student that learned nothing."""
    make = Made(make_model, "language")
    with pytest.raises(UserError, match="padding_free"):
        make(tmp_path, stream(make.columns), task=TextGeneration(packing=True))
    trainer = make(tmp_path, stream(make.columns), eval_dataset=stream(make.columns))
    trainer.train()
    assert evaluate_distillation(trainer, latency=False, baseline=False).verdict()
    with pytest.raises(UserError, match="stream"):
        evaluate_distillation(trainer, latency=False, baseline=trainer.model)
