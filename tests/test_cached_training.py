"""Training from a cache: the live teacher's loss and gradients, however the data is gone through."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from invariants.cases import (
    KINDS,
    Collator,
    NotingTrainer,
    Record,
    arguments,
    largest_difference,
    make_models,
    make_rows,
    objectives,
    split,
    train,
)

from hf_distill.cache import Cache
from hf_distill.kept import Kept, is_sparse
from hf_distill.layouts import infer_layout
from hf_distill.objectives import KLDivergence, Labels, Objective, ReverseKL
from hf_distill.objectives.schedule import Schedule
from hf_distill.replay import Replay, TrainingData
from hf_distill.rows import SparseRows

SPARSE_KINDS = tuple(kind for kind in KINDS if kind.startswith(("masked", "causal", "sequence")))
SOFT: tuple[Objective, ...] = (KLDivergence(weight=0.5, temperature=2.0), Labels(weight=0.3))
EXACT: Any = {"top": 1000, "temperature": 2.0, "precision": "float32"}


def parts(kind: str, **models: Any) -> tuple[Any, Any, TrainingData]:
    """Return student, teacher and data of a kind; the train split holds every example twice."""
    student, teacher = make_models(kind, **{"dtype": torch.float64, **models})
    teacher.eval()
    rows = [*make_rows(kind), *make_rows(kind, 12)]
    data = TrainingData(
        datasets.Dataset.from_list(rows),
        datasets.Dataset.from_list(make_rows(kind, 13)),
        Collator(),
        infer_layout(student, teacher),
    )
    return student, teacher, data


def capture(teacher: Any, data: TrainingData, path: Path, *, exact: bool = True, **settings: Any) -> Cache:
    kept = Kept.of(teacher, data.layout, **{**EXACT, **settings})
    cache = Cache(data, teacher, kept, {}, path, exact)
    cache.fill(arguments(path.parent / "args", per_device_eval_batch_size=4))
    return cache


def trainer(student: Any, teacher: Any, data: TrainingData, path: Path, terms: Any, **settings: Any) -> NotingTrainer:
    return NotingTrainer(
        student,
        arguments(path, **{"num_train_epochs": 3, **split(4), **settings}),
        teacher=teacher,
        objectives=terms,
        layout=data.layout,
        train_dataset=data.train,
        eval_dataset=data.eval,
        data_collator=data.collator,
    )


def terms_of(kind: str) -> tuple[Objective, ...]:
    return SOFT if kind in SPARSE_KINDS else objectives(kind)


@pytest.mark.parametrize("sampling", ["random", "group_by_length"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_of_everything_is_the_teacher(kind: str, sampling: str, tmp_path: Path) -> None:
    """Targets one row off, of another temperature, or padded on the wrong side train as quietly as the right ones:
    over three shuffled epochs every loss, gradient and figure has to be the live teacher's."""
    found: list[tuple[Record, dict[str, float]]] = []
    for cached in (False, True):
        student, teacher, data = parts(kind)
        if cached:
            data, teacher = capture(teacher, data, tmp_path / "cache").apply(data)
        one = trainer(student, teacher, data, tmp_path, terms_of(kind), train_sampling_strategy=sampling)
        found.append((train(one), one.evaluate()))
    (live, live_figures), (replayed, replayed_figures) = found
    # The cache holds logits of other batches, and numbers of float64 as such.
    assert replayed.losses == pytest.approx(live.losses, rel=1e-9)
    assert largest_difference(replayed, live) < 1e-9
    assert len(live.losses) == 15
    quality = [name for name in live_figures if "loss" in name or "objective" in name or "agreement" in name]
    assert len(quality) > 2
    assert {name: replayed_figures[name] for name in quality} == pytest.approx(
        {name: live_figures[name] for name in quality}, rel=1e-5
    )


@pytest.mark.parametrize("kind", SPARSE_KINDS)
def test_a_part_of_the_classes(kind: str, tmp_path: Path) -> None:
    """With 5 of 40 classes the loss is that of `SparseRows.of` the live teacher's logits, computed here by hand."""
    student, teacher, data = parts(kind)
    wrapped, replay = capture(teacher, data, tmp_path / "cache", top=5).apply(data)
    objective = KLDivergence(temperature=2.0)
    one = trainer(student, replay, wrapped, tmp_path, (objective,))
    examples = [wrapped.train[row] for row in (7, 2, 2, 30)]
    batch = wrapped.collator([{key: value for key, value in row.items() if key != "length"} for row in examples])
    loss = one.compute_loss(one.model, dict(batch))
    inputs = {key: value for key, value in batch.items() if key in ("input_ids", "attention_mask", "decoder_input_ids")}
    with torch.no_grad():
        ours, theirs = student.eval()(**inputs).logits, teacher(**inputs).logits
    rows = data.layout.select(ours, theirs, batch)
    kept = SparseRows.of(rows.teacher, 5, 2.0)
    wanted = objective.rows(rows.student, kept, rows.labels).mean()
    assert 0 < float(wanted)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-9)
    dense = objective.rows(rows.student, rows.teacher, rows.labels).mean()
    assert wanted < 0.999 * dense  # or the test would not notice that all classes were kept


def count_examples(teacher: Any) -> list[int]:
    """Return a list that grows by the number of examples of every forward pass."""
    seen: list[int] = []
    teacher.register_forward_hook(
        lambda module, args, kwargs, output: seen.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    return seen


@pytest.mark.parametrize("kind", ["classification", "causal-lm"])
def test_the_teacher_answers_each_example_once(kind: str, tmp_path: Path) -> None:
    """What a cache is for: E epochs over N distinct examples are N teacher forwards, with those of the eval split that
    are in the train split too, and the examples that are there twice."""
    student, teacher, data = parts(kind)
    kept = Kept.of(teacher, data.layout, **EXACT)
    cache = Cache(data, teacher, kept, {}, tmp_path / "cache")
    if kept.is_sparse:  # the two looks at whether its head can be taken off are no examples
        from hf_distill import kept as module

        head = module.open_head(teacher)
        patch = pytest.MonkeyPatch()
        patch.setattr(module, "open_head", lambda _: head)
    seen = count_examples(teacher)
    cache.fill(arguments(tmp_path / "args", per_device_eval_batch_size=4))
    wrapped, replay = cache.apply(data)
    train(trainer(student, replay, wrapped, tmp_path, terms_of(kind), eval_strategy="epoch"))
    again = Cache(data, teacher, kept, {}, tmp_path / "cache")
    again.fill(arguments(tmp_path / "args"))
    if kept.is_sparse:
        patch.undo()
    distinct = {repr([row["input_ids"], row["labels"] if kept.is_sparse else None]) for row in make_rows(kind)}
    assert sum(seen) == len(distinct) == 24
    assert len(data.train) + len(data.eval) == 49


def test_half_precision_is_near(tmp_path: Path) -> None:
    """The default precision: what it changes of a loss is far below what a batch more or less does."""
    losses = []
    for precision in ("float32", "float16"):
        student, teacher, data = parts("causal-lm", dtype=torch.float32)
        cache = capture(teacher, data, tmp_path / precision, top=8, precision=precision)
        wrapped, replay = cache.apply(data)
        losses.append(train(trainer(student, replay, wrapped, tmp_path, SOFT)).losses)
    assert losses[1] == pytest.approx(losses[0], rel=2e-3)
    assert losses[1] != losses[0]
    assert cache.kept.row_bytes() == 8 * (2 + 2) + 2


def test_more_classes_than_there_are(tmp_path: Path) -> None:
    """`top` above the vocabulary is all of it, and says so."""
    _, teacher, data = parts("causal-lm")
    cache = capture(teacher, data, tmp_path / "cache")
    assert cache.kept.top == cache.kept.classes == 40
    assert "all of 40 tokens" in cache.in_words()


@pytest.mark.parametrize("kind", ["classification", "token-classification", "causal-lm", "question-answering"])
def test_the_size_is_known_before(kind: str, tmp_path: Path) -> None:
    """Hours into a capture is too late to learn that the disk is too small."""
    _, teacher, data = parts(kind, dtype=torch.float32)
    kept = Kept.of(teacher, data.layout, **EXACT)
    said = Cache(data, teacher, kept, {}, tmp_path / "cache").size
    cache = capture(teacher, data, tmp_path / "cache")
    table = cache.apply(data)[0].collator.targets.data.data.table
    written = sum(column.nbytes for column in table.combine_chunks().columns)
    assert written == pytest.approx(said, rel=0.15)


def test_a_cache_of_another_order(tmp_path: Path) -> None:
    """Rows are found by their content: a shuffled train split, or a part of it, has the same targets."""
    student, teacher, data = parts("classification")
    capture(teacher, data, tmp_path / "cache")
    part = TrainingData(data.train.shuffle(seed=3).select(range(9)), data.eval, data.collator, data.layout)
    kept = Kept.of(teacher, data.layout, **EXACT)
    wrapped, replay = Cache(part, teacher, kept, {}, tmp_path / "cache").apply(part)
    batch = wrapped.collator([wrapped.train[row] for row in range(9)])
    with torch.no_grad():
        wanted = teacher(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    assert torch.allclose(replay(**{key: batch[key] for key in replay.takes if key in batch})["logits"], wanted)


REFUSED: list[tuple[str, Objective, str]] = [
    ("causal-lm", KLDivergence(temperature=1.0), "at temperature 2"),
    ("causal-lm", ReverseKL(temperature=Schedule(start=4.0, end=1.0)), "changes during training"),
]


@pytest.mark.parametrize(("kind", "objective", "reason"), REFUSED)
def test_objectives_that_a_cache_cannot_serve(kind: str, objective: Objective, reason: str, tmp_path: Path) -> None:
    """Found at the first batch at the earliest, or never: probabilities softened twice are probabilities too."""
    student, teacher, data = parts(kind)
    wrapped, replay = capture(teacher, data, tmp_path / "cache").apply(data)
    with pytest.raises(ValueError, match=reason):
        trainer(student, replay, wrapped, tmp_path, (objective,))


def refused(make: Callable[[], Any]) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        make()
    return str(caught.value)


def test_features_are_refused(tmp_path: Path) -> None:
    """A teacher of which only the answers were kept has no layers: said by name, not by an AttributeError."""
    from hf_distill.objectives import Hidden, InputGradient, LogitsMSE, SimilarityPreserving

    student, teacher, data = parts("classification")
    wrapped, replay = capture(teacher, data, tmp_path / "cache").apply(data)
    for objective in (Hidden(), InputGradient(), SimilarityPreserving()):
        said = refused(lambda one=objective: trainer(student, replay, wrapped, tmp_path, (one, Labels())))
        assert f"'{objective.name}' looks into the teacher" in said
    student, teacher, data = parts("causal-lm")
    wrapped, replay = capture(teacher, data, tmp_path / "sparse").apply(data)
    said = refused(lambda: trainer(student, replay, wrapped, tmp_path, (LogitsMSE(),)))
    assert "'logits_mse' does not work with a cached teacher of this task" in said


def test_data_without_targets_is_refused(tmp_path: Path) -> None:
    """Without the column the teacher would have nothing to say; silently, the loss would be that of the labels."""
    student, teacher, data = parts("classification")
    _, replay = capture(teacher, data, tmp_path / "cache").apply(data)
    assert isinstance(replay, Replay)
    assert is_sparse(teacher, data.layout) is False
    one = trainer(student, replay, data, tmp_path, objectives("classification"))
    assert "the batch has no cached_logits" in refused(one.train)
