"""Latency: fair between models, of the model alone, and leaving the model as it was."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from hf_distill.models.quantization import size
from hf_distill.report import latency
from hf_distill.report.latency import measure, measure_all
from hf_distill.report.timing import Latency, Timing

if TYPE_CHECKING:  # run a second time, it would move the caches
    from conftest import MakeModel

BUDGET = 0.05


def load(directory: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(directory)
    return model


def inputs(rows: int, tokens: int) -> dict[str, torch.Tensor]:
    return {
        "labels": torch.zeros(rows, dtype=torch.long),
        "input_ids": torch.full((rows, tokens), 7),
        "token_type_ids": torch.zeros(rows, tokens, dtype=torch.long),
        "attention_mask": torch.ones(rows, tokens, dtype=torch.long),
        "length": torch.full((rows,), tokens),
    }


def test_models_with_different_inputs_are_timed_on_one_batch(make_model: MakeModel) -> None:
    """A model that takes fewer inputs (DistilBERT: no `token_type_ids`) would crash the report of a finished run."""
    models = {"teacher": load(make_model("bert")), "student": load(make_model("distilbert", layers=2))}
    times = measure_all(models, inputs(1, 5), inputs(8, 12), seconds=BUDGET)
    assert list(times) == ["teacher", "student"]
    for found in times.values():
        assert (found.single.batch_size, found.single.sequence_length) == (1, 5)
        assert (found.batch.batch_size, found.batch.sequence_length) == (8, 12)
        assert found.dtype == "float32"
        assert found.threads == torch.get_num_threads()
        assert found.device
        for timing in (found.single, found.batch):
            assert timing.repeats >= 10
            assert 0 < timing.median_ms <= timing.p90_ms
        assert found.throughput == pytest.approx(8 / (found.batch.median_ms / 1000))
    assert times["teacher"].single.repeats == times["student"].single.repeats


def test_a_pass_is_timed_as_in_serving(tiny_bert: Path) -> None:
    """With dropout, gradients or the loss in the pass, the number would be that of training, not of serving."""
    model = load(tiny_bert)
    seen: list[tuple[bool, bool, bool]] = []

    def note(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        seen.append((module.training, torch.is_inference_mode_enabled(), output.loss is None))

    model.register_forward_hook(note, with_kwargs=True)
    model.train()
    measure(model, inputs(1, 4), inputs(2, 4), seconds=0.0)
    assert set(seen) == {(False, True, True)}


def test_every_module_gets_its_own_mode_back(tiny_bert: Path) -> None:
    """A frozen part that was in eval mode would silently get dropout when training goes on."""
    model = load(tiny_bert).train()
    model.base_model.eval()
    before = [module.training for module in model.modules()]
    assert len(set(before)) == 2
    measure(model, inputs(1, 4), inputs(2, 4), seconds=0.0)
    assert [module.training for module in model.modules()] == before


class Clock:
    """Time that only passes when a fake model runs."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def model(self, name: str, milliseconds: list[float]) -> Callable[[], None]:
        def run() -> None:
            done = self.calls.count(name)
            self.calls.append(name)
            self.now += milliseconds[min(done, len(milliseconds) - 1)] / 1000

        return run


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(latency.time, "perf_counter", lambda: clock.now)
    return clock


def test_slow_first_passes_do_not_count(clock: Clock) -> None:
    """Compilation and allocation in the first passes would make the model that runs first look slow."""
    times = latency._time({"a": clock.model("a", [900, 800, 700, 2]), "b": clock.model("b", [3])}, 0.2, 10)
    assert times["a"] == pytest.approx([2.0] * len(times["a"]))
    assert times["b"] == pytest.approx([3.0] * len(times["b"]))


def test_models_take_turns_and_the_first_pass_of_a_turn_is_not_timed(clock: Clock) -> None:
    """Models timed one after the other meet different weather; one timed on the other's caches looks slower."""
    times = latency._time({"a": clock.model("a", [1]), "b": clock.model("b", [1])}, 0.01, 6)
    assert "".join(clock.calls) == "aaabbb" + "aaaabbbb" + "bbbbaaaa"
    assert {name: len(passes) for name, passes in times.items()} == {"a": 6, "b": 6}


def test_the_budget_is_kept_where_it_can_be(clock: Clock) -> None:
    """A large model with a fixed number of repeats would hold up the end of a run for minutes."""
    fast = latency._time({"a": clock.model("a", [1])}, 0.5, 10)
    assert 0.5 <= len(fast["a"]) * 1e-3 / 0.75 <= 0.51
    slow = latency._time({"b": clock.model("b", [4000])}, 0.5, 10)
    assert len(slow["b"]) == latency.TURN


def test_median_and_p90_against_the_standard_library() -> None:
    """A mean in place of a median would report one hiccup of the machine as the model's speed."""
    passes = [5.0, 1.0, 2.0, 100.0, 3.0, 4.0, 2.5, 3.5, 1.5, 4.5, 2.2]
    timing = latency._timing(passes, inputs(2, 3))
    assert timing.median_ms == statistics.median(passes)
    assert timing.p90_ms == pytest.approx(statistics.quantiles(passes, n=10, method="inclusive")[-1])


def test_size_is_what_is_stored(make_model: MakeModel) -> None:
    """Tied embeddings counted twice would overstate the teacher and with it the compression."""
    for kind in ("bert", "gpt2"):
        directory = make_model(kind)
        with safe_open(directory / "model.safetensors", framework="pt") as file:
            stored = [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118 (no mapping)
        assert size(load(directory)) == (
            sum(tensor.numel() for tensor in stored),
            sum(tensor.numel() * tensor.element_size() for tensor in stored),
        )


def test_shared_parameters_count_once() -> None:
    """See above: a shared matrix is one matrix."""
    one, other = torch.nn.Linear(4, 4, bias=False), torch.nn.Linear(4, 4, bias=False)
    other.weight = one.weight
    assert size(torch.nn.Sequential(one, other)) == (16, 64)


def test_throughput_is_of_the_batch() -> None:
    """Throughput from single examples would hide what batching brings."""
    timing = Timing(median_ms=4.0, p90_ms=5.0, repeats=9, batch_size=1, sequence_length=3)
    batch = Timing(median_ms=20.0, p90_ms=21.0, repeats=9, batch_size=8, sequence_length=3)
    assert Latency(timing, batch, "cpu", "float32", 1).throughput == 400.0
