"""Models spread over devices, or kept elsewhere until they are needed, as accelerate does it (`device_map`).

There is one device here. `meta` stands in for a second one: tensors there have no numbers, and do not mix with others.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from accelerate import cpu_offload
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch import Tensor, nn

from hf_distill.models.heads import Captured, OutputHead, open_head
from hf_distill.models.projection import Side
from hf_distill.objectives import JensenShannon, KLDivergence, Labels, RowObjective
from hf_distill.rows.base import Places, SparseRows, side_of
from hf_distill.rows.tokens import TokenRows
from hf_distill.training.chunked import rows as head_rows
from hf_distill.training.chunked.heads import Heads
from hf_distill.training.chunked.rows import HeadRows

ROWS, WIDTH, VOCABULARY = 10, 8, 97
OBJECTIVES: tuple[RowObjective, ...] = (KLDivergence(temperature=2.0), JensenShannon(), Labels())


def make_model(seed: int) -> Any:
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24
    )
    return transformers.LlamaForCausalLM(config).eval()


def batch() -> dict[str, Tensor]:
    ids = torch.randint(0, VOCABULARY, (3, 7), generator=torch.Generator().manual_seed(7))
    return {"input_ids": ids, "labels": ids}


def side(device: str, requires_grad: bool = False) -> Side:
    linear = nn.Linear(WIDTH, VOCABULARY, device=device)
    return Side(OutputHead(linear), torch.randn(ROWS, WIDTH, device=device, requires_grad=requires_grad), torch.float32)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, rows in (("ELSEWHERE", 6), ("BLOCK_ELSEWHERE", 2)):
        monkeypatch.setattr(head_rows, name, VOCABULARY * 4 * rows)


def test_a_hook_on_the_head_stays() -> None:
    """The hook moves the head's input to its weights. Dropped after the first batch, the next forward pass of whoever
    evaluates or exports the model fails on two devices, long after."""
    student, teacher = make_model(1), make_model(2)
    calls: list[int] = []

    class Hook(AlignDevicesHook):
        def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            calls.append(1)
            return super().pre_forward(module, *args, **kwargs)

    add_hook_to_module(teacher.lm_head, Hook(execution_device="cpu"))
    heads = Heads.open(student, {"teacher": teacher})
    assert heads is not None
    with torch.no_grad(), heads.capturing():
        for model in (student, teacher):
            model(batch()["input_ids"])
    calls.clear()
    teacher(batch()["input_ids"])
    assert calls == [1]


def test_an_offloaded_head_falls_back() -> None:
    """Its weights are not there between forward passes: chunks would be multiplied by tensors without numbers."""
    model = make_model(1)
    wanted = model(batch()["input_ids"]).logits
    cpu_offload(model, "cpu")
    assert model.lm_head.weight.is_meta
    assert open_head(model) is None
    assert torch.equal(model(batch()["input_ids"]).logits, wanted)


def test_rows_are_picked_where_the_last_layer_was_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its places are known where the batch is; an index from another device is an error."""
    seen: list[set[str]] = []

    def pick(places: Places, output: Tensor) -> Tensor:
        seen.append({one.device.type for one in (places.mask, places.labels, places.example, output)})
        return output[0]

    monkeypatch.setattr(Places, "pick", pick)
    places = TokenRows(shift=True).places(batch())
    captured = Captured(torch.randn(3, 7, WIDTH, device="meta"), torch.float32)
    found = side_of(OutputHead(nn.Linear(WIDTH, VOCABULARY, device="meta")), captured, places, None)
    assert seen == [{"meta"}]
    assert found.hidden.is_meta
    assert not places.mask.is_meta


@pytest.mark.parametrize("kept", [False, True], ids=["teacher", "kept"])
def test_a_teacher_whose_head_is_elsewhere(kept: bool) -> None:
    """Its logits come to the student's, a chunk at a time; compared where they are, the first step fails."""
    student = side("meta", requires_grad=True)
    teacher: Any = side("cpu")
    if kept:
        teacher = SparseRows.of(torch.randn(ROWS, VOCABULARY, device="meta"), 8, temperature=2.0)
    terms = (OBJECTIVES[0], OBJECTIVES[2]) if kept else OBJECTIVES
    labels = torch.randint(0, VOCABULARY, (ROWS,))
    rows = HeadRows(student, teacher, labels.to("meta"), torch.zeros(ROWS, dtype=torch.long, device="meta"), 1)
    sums = rows.sums_in_chunks(terms, torch.ones(len(terms), device="meta"))
    sums.sum().backward()
    assert sums.shape == (1, len(terms))
    assert rows.agreement().is_meta
    for one in (student.hidden, student.head.linear.weight, student.head.linear.bias):
        assert one.grad is not None
        assert one.grad.is_meta


def test_a_walk_asks_the_device_for_nothing() -> None:
    """Without numbers there is nothing to wait for: code that looks at one, on anything but a CPU, fails here."""
    student, teacher = side("meta", requires_grad=True), side("meta")
    labels, example = (torch.zeros(ROWS, dtype=torch.long, device="meta") for _ in range(2))
    rows = HeadRows(student, teacher, labels, example, 3)
    rows.sums_in_chunks(OBJECTIVES, torch.ones(3, device="meta")).sum().backward()
    with pytest.raises(RuntimeError, match="meta"):
        bool(rows.agreement().sum() > 0)
