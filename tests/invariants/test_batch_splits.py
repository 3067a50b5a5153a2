"""Promise 1: loss and gradient of a step do not depend on how its examples are split, and are the right ones."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from invariants.cases import (
    KINDS,
    STEP,
    Collator,
    NotingTrainer,
    Record,
    generator,
    largest_difference,
    make_models,
    make_rows,
    make_trainer,
    objectives,
    split,
    train,
)
from invariants.processes import as_two_processes
from invariants.worker import SAMPLED

from hf_distill.objectives import Attention, Embeddings, Hidden, Hint, Labels, Objective, Patient

Array = np.ndarray[Any, Any]

# float64 throughout; what is left is the order of additions.
ROUNDING = 1e-12
# Logged values are float32.
FLOAT32 = 1e-5


def assert_same(found: Record, wanted: Record) -> None:
    assert found.losses == pytest.approx(wanted.losses, rel=ROUNDING)
    assert largest_difference(found, wanted) < ROUNDING
    assert found.tokens == wanted.tokens
    for one, other in zip(found.logs, wanted.logs, strict=True):
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=ROUNDING)
        assert one.keys() == other.keys()
        names = [name for name in other if name in ("loss", "agreement") or name.startswith("objective/")]
        assert {name: one[name] for name in names} == pytest.approx({name: other[name] for name in names}, rel=FLOAT32)


@pytest.mark.parametrize(("kind", "sampling"), SAMPLED)
def test_one_process(kind: str, sampling: str, tmp_path: Path) -> None:
    """A loss averaged per micro-batch weights short batches like long ones, and one divided by nothing grows with the
    accumulation: both train, and nothing tells."""

    def run(batch_size: int) -> Record:
        settings = {"train_sampling_strategy": sampling, "num_train_epochs": 1, **split(batch_size)}
        return train(make_trainer(kind, tmp_path, **settings))

    whole = run(8)
    assert len(whole.losses) == 3
    for batch_size in (4, 2, 1):
        assert_same(run(batch_size), whole)


def test_two_processes(tmp_path: Path) -> None:
    """Forgetting that DDP averages halves the gradient on two processes; counting on each weights them wrongly.

    Evaluation has 13 rows in batches of 2: accelerate fills the last ones with repeated rows, which must not count.
    """
    found = as_two_processes("splits", tmp_path)
    assert list(found) == list(SAMPLED)
    for kind, sampling in SAMPLED:
        settings = {"train_sampling_strategy": sampling, "num_train_epochs": 1, "per_device_eval_batch_size": 13}
        trainer = make_trainer(kind, tmp_path, **settings, **split(8))
        record, predicted = found[kind, sampling]
        assert_same(record, train(trainer))
        alone = trainer.predict(trainer.eval_dataset, metric_key_prefix="eval")
        assert figures(predicted.metrics) == pytest.approx(figures(alone.metrics), rel=FLOAT32)
        column = "decoder_input_ids" if kind.startswith("sequence-to-sequence") else "input_ids"
        lengths = [len(ids) for ids in trainer.eval_dataset[column]]
        for one, other, length in zip(predicted.predictions, alone.predictions, lengths, strict=True):
            # One row of logits an example, or one a token, of which those of padding are nobody's business.
            np.testing.assert_allclose(one[:length], other[:length], rtol=1e-6, atol=1e-9)


def test_two_processes_with_fsdp(tmp_path: Path) -> None:
    """Sharded weights, gradients averaged by another path: the factor that is right for DDP must be right here."""
    found = as_two_processes("fsdp", tmp_path, "fsdp2")
    for kind, (logs, metrics) in found.items():
        settings: dict[str, Any] = {"num_train_epochs": 1, "dtype": torch.float32, **split(8)}
        trainer = make_trainer(kind, tmp_path, **settings)
        for one, other in zip(logs, train(trainer).logs, strict=True):
            names = [name for name in other if "/" in name or name in ("loss", "grad_norm", "agreement")]
            assert {name: one[name] for name in names} == pytest.approx({name: other[name] for name in names}, rel=1e-5)
        assert figures(metrics) == pytest.approx(figures(trainer.evaluate()), rel=1e-5)
        directory = tmp_path / kind
        saved = type(trainer.model).from_pretrained(directory)
        for name, value in trainer.model.state_dict().items():
            torch.testing.assert_close(saved.state_dict()[name], value, rtol=1e-4, atol=1e-5)


def figures(metrics: dict[str, float] | None) -> dict[str, float]:
    assert metrics is not None
    chosen = {name: value for name, value in metrics.items() if not name.endswith(("runtime", "second", "time"))}
    assert len(chosen) >= 3
    return chosen


FEATURES: tuple[Objective, ...] = (
    Hidden(projection="always"),
    Hidden(weight=0.3, loss="cosine", layers="last"),
    Embeddings(weight=0.5),
    Attention(compare="kl"),
    Patient(weight=0.7, layers="last"),
    Hint(weight=0.2, layers="similarity"),
)


@pytest.mark.parametrize("kind", ["classification", "causal-lm-gpt2"])
def test_objectives_on_layers(kind: str, tmp_path: Path) -> None:
    """Their unit is the token, and what they learn has a gradient of its own: a projection that is trained at another
    rate with another split is another objective after the first step."""

    def run(batch_size: int) -> Record:
        return train(make_trainer(kind, tmp_path, terms=FEATURES, num_train_epochs=1, **split(batch_size)))

    whole = run(8)
    learned = [name for name in whole.gradients[-1] if name.startswith("distillation.")]
    assert len(learned) == 2
    assert all(bool((step[name] != 0).any()) for step in whole.gradients for name in learned)
    for batch_size in (4, 1):
        assert_same(run(batch_size), whole)


def test_texts_generated_by_two_processes(tmp_path: Path) -> None:
    """Gathered in the order of the processes, every text would be judged against another row's reference; and each
    process would report other figures."""
    found = as_two_processes("generate", tmp_path)
    model, _ = make_models("sequence-to-sequence")
    alone = generator().texts(model, 7)
    assert len(set(alone)) == 7
    assert found == [alone, alone]


# --- against the formulas ---------------------------------------------------------------------------------------------


def softmax(logits: Array) -> Array:
    exponents: Array = np.exp(logits - logits.max(-1, keepdims=True))
    return exponents / exponents.sum(-1, keepdims=True)


def formula(name: str, student: Array, teacher: Array, label: Any) -> tuple[float, Array]:
    """Return an objective's value for one row of logits, and its gradient in the student's logits."""
    if name == "kl":  # T^2 sum p (log p - log q)
        temperature = 2.0
        p, q = softmax(teacher / temperature), softmax(student / temperature)
        return float(temperature**2 * (p * (np.log(p) - np.log(q))).sum()), temperature * (q - p)
    if name == "logits_mse":
        return float(((student - teacher) ** 2).mean()), 2 * (student - teacher) / student.size
    if isinstance(label, float) and student.size == 1:
        return float((student - label).item() ** 2), 2 * (student - label)
    q = softmax(student)
    return float(-np.log(q[int(label)])), q - np.eye(student.size)[int(label)]


def places(kind: str, example: dict[str, Any]) -> list[tuple[Any, Any]]:
    """Return position in the logits and label of every row of an example; None where it has no label."""
    labels = example["labels"]
    if kind == "classification":
        return [((0,), None if labels == -100 else labels)]
    if kind in ("multi-label", "regression"):
        return [((0, index), None if math.isnan(label) else label) for index, label in enumerate(labels)]
    if kind == "question-answering":
        context = np.flatnonzero(example["context_mask"])
        answer = [None if label < 0 else int(np.flatnonzero(context == label)[0]) for label in labels]
        return [((0, context, side), label) for side, label in enumerate(answer)]
    shift = int(kind.startswith("causal"))
    return [((0, at - shift), label) for at, label in enumerate(labels) if label != -100 and at >= shift]


def logits_of(output: Any) -> torch.Tensor:
    if "start_logits" in output:
        return torch.stack((output.start_logits, output.end_logits), -1)
    logits: torch.Tensor = output.logits
    return logits


def logits_at(kind: str, logits: Array, place: Any) -> Array:
    found = np.atleast_1d(logits[place])
    # Each label of a multi-label example is two classes with logits 0 and z.
    return np.array([0.0, found[0]]) if kind == "multi-label" else found


# That of vectors is in test_sentence_similarity.
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "sentence-similarity"])
def test_loss_and_gradient_are_those_of_the_formulas(kind: str, tmp_path: Path) -> None:
    """All splits could agree on a wrong number: wrong shift, padding counted, T^2 missing, wrong divisor.

    The reference runs one example at a time, so it knows no padding, and takes values and derivatives of the
    published formulas in NumPy.
    """
    rows = make_rows(kind)[:STEP]
    student, teacher = make_models(kind)
    weights = {objective.name: objective.weight for objective in objectives(kind)}
    sums, counts, agreed = dict.fromkeys(weights, 0.0), dict.fromkeys(weights, 0), []
    outputs = []
    for example in rows:
        inputs = {key: torch.tensor([example[key]]) for key in ("input_ids", "decoder_input_ids") if key in example}
        output = logits_of(student.eval()(**inputs))
        if "teacher_input_ids" in example:
            inputs = {"input_ids": torch.tensor([example["teacher_input_ids"]])}
        mine, theirs = output.detach().numpy(), logits_of(teacher.eval()(**inputs)).detach().numpy()
        slopes = {name: np.zeros_like(mine) for name in weights}
        for place, label in places(kind, example):
            aligned = place if "aligned_at" not in example else (0, example["aligned_at"][place[1] + 1])
            s, t = logits_at(kind, mine, place), logits_at(kind, theirs, aligned)
            names = weights.keys() - (set() if label is not None else {"labels"})
            if "aligned_at" in example and aligned[1] < 0:
                names &= {"labels"}
            else:
                agreed.append(s.argmax() == t.argmax())
            for name in names:
                value, slope = formula(name, s, t, label)
                counts[name] += 1
                sums[name] += value
                slopes[name][place] += slope.reshape(-1)[-1] if kind in ("multi-label", "regression") else slope
        outputs.append((output, slopes))
    for output, slopes in outputs:
        output.backward(torch.from_numpy(sum(weights[name] * slopes[name] / counts[name] for name in weights)))
    means = {f"objective/{name}": sums[name] / counts[name] for name in weights}
    if kind != "regression":
        means["agreement"] = float(np.mean(agreed))
    loss = sum(weights[name] * means[f"objective/{name}"] for name in weights)
    # Llama and T5 compute their norms in float32.
    rounding = 1e-6 if kind in ("causal-lm", "causal-lm-own-tokens", "sequence-to-sequence-t5") else ROUNDING

    trainer = make_trainer(kind, tmp_path, train_sampling_strategy="sequential", max_steps=1, **split(4))
    evaluated = trainer.evaluate(datasets.Dataset.from_list(rows))
    assert {name: evaluated[f"eval_{name}"] for name in means} == pytest.approx(means, rel=rounding)
    assert evaluated["eval_loss"] == pytest.approx(loss, rel=rounding)
    record = train(trainer)
    assert {name: record.logs[0][name] for name in means} == pytest.approx(means, rel=FLOAT32)
    assert record.losses == pytest.approx([loss], rel=rounding)
    wanted = {name: one.grad for name, one in student.named_parameters() if one.grad is not None}
    assert largest_difference(record, Record(gradients=[wanted])) < rounding


# --- what makes a window uneven ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["classification", "causal-lm-gpt2"])
def test_last_window_of_an_epoch_may_be_short(kind: str, tmp_path: Path) -> None:
    """20 examples in steps of 8: divided by the planned length of the window, the last step would be half as long."""
    rows = make_rows(kind, 20)

    def run(batch_size: int) -> Record:
        return train(make_trainer(kind, tmp_path, rows=rows, num_train_epochs=2, **split(batch_size)))

    whole = run(8)
    assert len(whole.losses) == 6
    assert_same(run(4), whole)
    assert_same(run(2), whole)


def test_data_without_a_length_may_end_within_a_window(tmp_path: Path) -> None:
    """`Trainer` takes no step on what is left over of a stream, but adds its gradient, divided by a count of its own,
    to the next step, whose loss is then that of two."""
    rows = make_rows("classification", 10)
    student, teacher = (model.eval() for model in make_models("classification"))

    def loss(window: list[dict[str, Any]]) -> float:
        values: dict[str, list[float]] = {objective.name: [] for objective in objectives("classification")}
        for example in window:
            ids = torch.tensor([example["input_ids"]])
            mine, theirs = (model(input_ids=ids).logits[0].detach().numpy() for model in (student, teacher))
            for name in values if example["labels"] != -100 else values.keys() - {"labels"}:
                values[name].append(formula(name, mine, theirs, example["labels"])[0])
        return sum(one.weight * float(np.mean(values[one.name])) for one in objectives("classification"))

    settings = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 3, "max_steps": 7}
    trainer = make_trainer("classification", tmp_path, learning_rate=0.0, **settings)
    trainer.train_dataset = datasets.Dataset.from_list(rows).to_iterable_dataset()
    record = train(trainer)
    windows = [rows[:3], rows[3:6], rows[6:9]]
    wanted = [loss(window) for window in [*windows, *windows, windows[0]]]
    assert record.losses == pytest.approx(wanted, rel=ROUNDING)
    assert [log["loss"] for log in record.logs] == pytest.approx(wanted, rel=FLOAT32)
    first, again = (Record(gradients=record.gradients[start : start + 3]) for start in (0, 3))
    assert largest_difference(again, first) < ROUNDING
    trainer.train_dataset = datasets.Dataset.from_list(rows[:2]).to_iterable_dataset()
    with pytest.raises(ValueError, match=r"2 micro-batches .* gradient_accumulation_steps is 3"):
        trainer.train()


@pytest.mark.parametrize("kind", KINDS)
def test_a_window_without_labels_costs_nothing(kind: str, tmp_path: Path) -> None:
    """0 / 0 is NaN, and one NaN in a gradient is the end of the model; `logging_nan_inf_filter` even hides it."""
    rows = make_rows(kind, 2 * STEP, masked=range(STEP))
    settings: dict[str, Any] = {"rows": rows, "terms": [Labels()], "num_train_epochs": 1, **split(4)}
    record = train(make_trainer(kind, tmp_path, train_sampling_strategy="sequential", **settings))
    assert record.losses[0] == 0.0 < record.losses[1]
    assert record.logs[0]["grad_norm"] == 0.0
    assert not record.logs[0].get("objective/labels")
    assert all(bool((gradient == 0).all()) for gradient in record.gradients[0].values())


@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_nothing(kind: str, tmp_path: Path) -> None:
    """Padding that is counted makes the loss depend on the longest example of the batch."""

    def run(multiple: int) -> Record:
        return train(make_trainer(kind, tmp_path, collator=Collator(multiple), num_train_epochs=1, **split(4)))

    assert_same(run(16), run(1))


@pytest.mark.parametrize("kind", ["classification", "masked-lm"])
def test_bert_is_not_scaled_by_the_accumulation(kind: str, tmp_path: Path) -> None:
    """The stock Trainer trains BERT with a gradient as many times too large as there are micro-batches: its heads take
    `num_items_in_batch` and ignore it. Our labels term must not be theirs."""

    def norm(batch_size: int) -> float:
        trainer = make_trainer(kind, tmp_path, terms=[Labels()], max_steps=1, **split(batch_size))
        trainer.model.forward = refuse_labels(trainer)
        return float(train(trainer).logs[0]["grad_norm"])

    assert norm(1) == pytest.approx(norm(8), rel=ROUNDING)


def refuse_labels(trainer: NotingTrainer) -> Any:
    forward = trainer.model.forward

    def checked(**inputs: Any) -> Any:
        assert "labels" not in inputs
        assert "num_items_in_batch" not in inputs
        output = forward(**inputs)
        assert output.loss is None
        return output

    return checked


def test_models_that_take_no_loss_arguments(tmp_path: Path) -> None:
    """By default `Trainer` divides the loss of such a model once more, by the number of micro-batches."""

    def run(batch_size: int) -> Record:
        trainer = make_trainer("classification", tmp_path, max_steps=1, **split(batch_size))
        trainer.model_accepts_loss_kwargs = False
        return train(trainer)

    assert_same(run(2), run(8))


@pytest.mark.parametrize("kind", KINDS)
def test_eval_loss_does_not_depend_on_the_batch_size(kind: str, tmp_path: Path) -> None:
    """`Trainer` averages the loss over batches: 1, 2, 4, 5 and 10 rows a batch give five eval losses, and choosing the
    best checkpoint by them chooses the batch size."""
    trainer = make_trainer(kind, tmp_path)
    wanted = None
    for batch_size in (1, 2, 4, 5, 10):
        trainer.args.per_device_eval_batch_size = batch_size
        found = figures(trainer.evaluate())
        wanted = found if wanted is None else wanted
        assert found == pytest.approx(wanted, rel=ROUNDING)
