"""Training from a cache: the live teacher's loss and gradients, however the data is gone through."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
import torch
from invariants.cached import (
    FEATURES,
    SOFT,
    SPARSE_KINDS,
    cache_of,
    capture,
    directory_bytes,
    parts,
    states_for,
    terms_of,
    trainer,
)
from invariants.cases import Collator, Record, arguments, largest_difference, make_rows, objectives, train
from invariants.processes import as_two_processes
from invariants.worker import CACHED, RESUMED, SAMPLED, Stop

from hf_distill.cache.format import is_sparse
from hf_distill.cache.replay import Replay, TrainingData
from hf_distill.objectives import KLDivergence, Objective, ReverseKL
from hf_distill.objectives.schedule import Schedule
from hf_distill.rows import padding
from hf_distill.rows.base import SparseRows


@pytest.mark.parametrize(("kind", "sampling"), SAMPLED)
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


@pytest.mark.parametrize("kind", [kind for kind in SPARSE_KINDS if kind != "causal-lm-own-tokens"])
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
    assert float(wanted) > 0
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
    cache = cache_of(teacher, data, tmp_path / "cache")
    kept = cache.kept
    # The looks at how it bears padding, and at whether its head can be taken off, are no examples.
    patch = pytest.MonkeyPatch()
    patch.setattr(padding, "side_of", lambda *_: "right")
    if kept.is_sparse:
        from hf_distill.cache import recorder as module

        head = module.open_head(teacher)
        patch.setattr(module, "open_head", lambda _: head)
    seen = count_examples(teacher)
    cache.fill(arguments(tmp_path / "args", per_device_eval_batch_size=4))
    wrapped, replay = cache.apply(data)
    train(trainer(student, replay, wrapped, tmp_path, terms_of(kind), eval_strategy="epoch"))
    again = cache_of(teacher, data, tmp_path / "cache")
    again.fill(arguments(tmp_path / "args"))
    patch.undo()
    distinct = {repr([row["input_ids"], row["labels"] if kept.is_sparse else None]) for row in make_rows(kind)}
    assert sum(seen) == len(distinct) == 24
    assert len(data.train) + len(data.eval) == 53


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


@pytest.mark.parametrize(
    "kind", ["classification", "token-classification", "causal-lm", "question-answering", "sentence-similarity"]
)
def test_the_size_is_known_before(kind: str, tmp_path: Path) -> None:
    """Hours into a capture is too late to learn that the disk is too small: counted are files, and what Arrow adds to
    batches of four small examples was as much again as the examples."""
    _, teacher, data = parts(kind, dtype=torch.float32)
    for count in (24, 300):
        data = replace(data, train=datasets.Dataset.from_list(make_rows(kind, count)))
        said = cache_of(teacher, data, tmp_path / f"{count}", top=8).size
        capture(teacher, data, tmp_path / f"{count}", top=8)
        assert said == pytest.approx(directory_bytes(tmp_path / f"{count}"), rel=0.1)


def test_a_cache_of_another_order(tmp_path: Path) -> None:
    """Rows are found by their content: a shuffled train split, or a part of it, has the same targets."""
    _, teacher, data = parts("classification")
    capture(teacher, data, tmp_path / "cache")
    part = TrainingData(data.train.shuffle(seed=3).select(range(9)), data.eval, data.collator, data.layout)
    wrapped, replay = cache_of(teacher, part, tmp_path / "cache").apply(part)
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


def test_all_classes_are_refused(tmp_path: Path) -> None:
    """Logits of which the likeliest were kept have no squared difference: said by name, not by an AttributeError."""
    from hf_distill.objectives import LogitsMSE

    student, teacher, data = parts("causal-lm")
    wrapped, replay = capture(teacher, data, tmp_path / "sparse").apply(data)
    said = refused(lambda: trainer(student, replay, wrapped, tmp_path, (LogitsMSE(),)))
    assert "'logits_mse' does not work with a cached teacher" in said


def test_labels_of_hidden_tokens(tmp_path: Path) -> None:
    """A live teacher answers there too; from the cache came zeros, and a loss that was near the right one."""
    student, teacher, data = parts("token-classification")

    def hide(row: dict[str, Any]) -> dict[str, Any]:
        return {"attention_mask": [1, 0, *[1] * (len(row["input_ids"]) - 2)]}

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        batch = Collator()(rows)
        return {**batch, "attention_mask": Collator().pad([row["attention_mask"] for row in rows], 0)}

    data = TrainingData(data.train.map(hide), data.eval.map(hide), collate, data.layout)
    wrapped, replay = capture(teacher, data, tmp_path / "cache").apply(data)
    with pytest.raises(ValueError, match=r"labels of a batch are at tokens that its attention mask hides"):
        trainer(student, replay, wrapped, tmp_path, SOFT).train()


def test_the_answers_of_another_teacher(tmp_path: Path) -> None:
    """Who compares two teachers takes the same data to both: told of a duplicate column, or given the first one's
    answers again."""
    student, teacher, data = parts("classification")
    other = copy.deepcopy(teacher)
    with torch.no_grad():
        other.classifier.weight.mul_(3.0)
    first, _ = capture(teacher, data, tmp_path / "first").apply(data)
    batches = []
    for given, place in ((first, "second"), (data, "third")):
        wrapped, replay = capture(other, given, tmp_path / place).apply(given)
        batches.append(next(iter(trainer(student, replay, wrapped, tmp_path, SOFT).get_train_dataloader())))
    assert batches[0].keys() == batches[1].keys()
    torch.testing.assert_close(batches[0]["cached_logits"], batches[1]["cached_logits"], rtol=0, atol=0)


def test_data_without_targets_is_refused(tmp_path: Path) -> None:
    """Without the column the teacher would have nothing to say; silently, the loss would be that of the labels."""
    student, teacher, data = parts("classification")
    _, replay = capture(teacher, data, tmp_path / "cache").apply(data)
    assert isinstance(replay, Replay)
    assert is_sparse(teacher, data.layout) is False
    one = trainer(student, replay, data, tmp_path, objectives("classification"))
    assert "no stored targets (cached_logits)" in refused(one.train)


@pytest.mark.parametrize("kind", ["classification", "causal-lm"])
def test_a_resume_ends_with_the_same_weights(kind: str, tmp_path: Path) -> None:
    """After a resume the data goes on in the middle of an epoch: each example still has to meet its own targets."""
    ends = []
    for stop in (None, 4):
        student, teacher, data = parts(kind, dropout=0.1, dtype=torch.float32)
        features = FEATURES.get(kind, ())
        states = states_for(features, student, teacher)
        wrapped, replay = capture(teacher, data, tmp_path / "cache", states=states).apply(data)
        terms = (*terms_of(kind), *features)
        settings = {key: value for key, value in RESUMED.items() if key not in ("dropout", "dtype")}
        out = tmp_path / str(stop)
        one = trainer(student, replay, wrapped, out, terms, per_device_train_batch_size=2, **settings)
        if stop is not None:
            one.add_callback(Stop(stop))
            one.train()
            student = parts(kind, dropout=0.1, dtype=torch.float32)[0]
            one = trainer(student, replay, wrapped, out, terms, per_device_train_batch_size=2, **settings)
        ends.append(train(one, **({} if stop is None else {"resume_from_checkpoint": str(out / f"checkpoint-{stop}")})))
    straight, resumed = ends
    assert straight.weights.keys() == resumed.weights.keys()
    assert all(value.equal(resumed.weights[name]) for name, value in straight.weights.items())


def test_two_processes(tmp_path: Path) -> None:
    """Two processes capture a half each and train from the whole: losses, gradients and figures are those of one
    process and the live teacher."""
    result = as_two_processes("cached", tmp_path)
    for kind in CACHED:
        record, figures, shards = result[kind]
        assert shards > 2
        student, teacher, data = parts(kind)
        terms = (*terms_of(kind), *FEATURES.get(kind, ()))
        one = trainer(student, teacher, data, tmp_path, terms, num_train_epochs=2)
        live, wanted = train(one), one.evaluate()
        assert record.losses == pytest.approx(live.losses, rel=1e-9)
        assert largest_difference(record, live) < 1e-9
        for name in ("eval_loss", "eval_agreement"):
            assert figures[name] == pytest.approx(wanted[name], rel=1e-5)


@pytest.mark.parametrize("classes", [40, 70_000])
def test_drawn_from_the_tail(classes: int) -> None:
    """Head exact, tail right on average: over many draws the target is the teacher's distribution, class by class, to
    four standard errors; and numbers above 65,535 survive in three bytes."""
    import numpy as np
    import pyarrow as pa

    from hf_distill.cache.format import Kept, read
    from hf_distill.cache.recorder import Recorder, sparse_rows

    draws, top, tail = 4000 if classes == 40 else 1000, 4, 6
    chance = np.random.default_rng(1)
    logits = chance.normal(size=40) * 1.5
    wide = np.full(classes, -1e4)
    places = np.sort(chance.choice(classes, 40, replace=False))
    wide[places] = logits
    kept = Kept(top=top, tail=tail, temperature=2.0, classes=classes)
    rows = torch.from_numpy(wide).float().expand(200, classes)
    target = np.zeros(classes)
    for start in range(0, draws, 200):
        found = sparse_rows(rows, kept, torch.Generator().manual_seed(start))
        columns = Recorder._sparse(SimpleNamespace(kept=kept), found, torch.tensor([150, 50]))  # type: ignore[arg-type]
        batch = read(pa.table(columns), kept, None)
        replayed = Replay(None, kept, "key").targets(batch).rows
        assert replayed.remaining.eq(-torch.inf).all()
        np.add.at(target, replayed.indices.numpy(), replayed.log_probabilities.exp().numpy() / draws)
    wanted = np.exp(wide / 2.0)
    wanted /= wanted.sum()
    head = np.argsort(-wanted)[:top]
    rest = 1 - wanted[head].sum()
    assert target[head] == pytest.approx(wanted[head], rel=1e-4)
    error = rest * np.sqrt(np.maximum(wanted / rest, 1e-9) / (tail * draws))
    error[head] = 1
    assert (np.abs(target - wanted) < 4 * error + 1e-6).all()
    assert rest > 0.3  # or there was no tail to speak of
    narrow = Kept(top=12, tail=6, precision="float16", classes=65_536)
    assert narrow.row_bytes() == 62
    assert Kept(top=10, tail=6, precision="float16", classes=256_000).row_bytes() == 70


def test_a_drawn_tail_is_for_losses_that_are_linear_in_it(tmp_path: Path) -> None:
    """Reverse KL of a drawn tail is, on average, another loss; `kl` trains, with the gradient of what was drawn."""
    student, teacher, data = parts("causal-lm")
    wrapped, replay = capture(teacher, data, tmp_path / "cache", top=4, tail=6).apply(data)
    assert "drawn from the tail" in refused(
        lambda: trainer(student, replay, wrapped, tmp_path, (ReverseKL(temperature=2.0),))
    )
    losses = train(trainer(student, replay, wrapped, tmp_path, SOFT)).losses
    assert all(map(torch.isfinite, map(torch.tensor, losses)))
    assert losses[-1] < losses[0]


def test_a_batch_without_a_row(tmp_path: Path) -> None:
    """A batch of examples of which nothing is learned has no row, in the cache as in the loss."""
    student, teacher, data = parts("causal-lm")
    wrapped, replay = capture(teacher, data, tmp_path / "cache", top=4, tail=2).apply(data)
    empty = [row for row in range(24) if set(data.train[row]["labels"]) == {-100}]
    assert len(empty) > 2
    batch = wrapped.collator([wrapped.train[row] for row in empty])
    assert batch["cached_indices"].shape == (0, 6)
    assert batch["cached_log_probabilities"].shape == (0, 4)
    assert float(trainer(student, replay, wrapped, tmp_path, SOFT).compute_loss(student, batch)) == 0
