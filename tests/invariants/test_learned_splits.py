"""What objectives learn follows the same rules as the student: the same on every split, sharded or not, or resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from invariants.cases import Record, make_adapted, make_trainer, split, train
from invariants.processes import as_two_processes
from invariants.test_batch_splits import FLOAT32, assert_same, figures
from invariants.worker import LEARNED, LEARNED_SHARDED, OWN
from safetensors.torch import load_file

PROJECTION = "distillation.0.projection.weight"


def run(name: str, directory: Path, batch_size: int) -> tuple[Record, dict[str, float]]:
    kind, settings = LEARNED[name]
    width = {"teacher_width": 16 if name == "hooked" else 24}
    trainer = make_trainer(kind, directory, num_train_epochs=1, **width, **settings, **split(batch_size))
    return train(trainer), trainer.evaluate()


@pytest.mark.parametrize("name", list(LEARNED))
def test_one_process(name: str, tmp_path: Path) -> None:
    """A projection that sees a mean over the micro-batch, or misses some of them, trains all the same."""
    whole, evaluated = run(name, tmp_path, 8)
    assert PROJECTION in whole.gradients[0]
    assert bool(whole.gradients[0][PROJECTION].abs().min() > 0)
    assert ("classifier.weight" in whole.gradients[0]) == (name in ("with labels", "second derivatives"))
    for batch_size in (4, 1):
        record, again = run(name, tmp_path, batch_size)
        assert_same(record, whole)
        assert figures(again) == pytest.approx(figures(evaluated), rel=FLOAT32)


def test_two_processes(tmp_path: Path) -> None:
    """Outside of the forward pass that DDP follows, a projection is another one on every process, without a word; and
    a head that no objective reaches is waited for in the second step, forever."""
    found = as_two_processes("learned", tmp_path)
    assert list(found) == list(LEARNED)
    for name, (record, evaluated) in found.items():
        whole, alone = run(name, tmp_path, 8)
        assert len(record.losses) == 3
        assert_same(record, whole)
        assert figures(evaluated) == pytest.approx(figures(alone), rel=FLOAT32)
        for key, value in whole.weights.items():
            torch.testing.assert_close(record.weights[key], value, rtol=1e-9, atol=1e-12)


def test_a_teacher_of_the_students_own_weights_in_two_processes(tmp_path: Path) -> None:
    """DDP watches which weights a forward pass uses: that of the teacher is one more, with other adapters or none."""
    found = as_two_processes("own_knowledge", tmp_path)
    assert list(found) == list(OWN)
    for name, (record, evaluated) in found.items():
        trainer = make_adapted(tmp_path, OWN[name](), **split(8))
        whole = train(trainer)
        assert_same(record, whole)
        assert figures(evaluated) == pytest.approx(figures(trainer.evaluate()), rel=FLOAT32)


def test_two_processes_with_fsdp(tmp_path: Path) -> None:
    """A sharded projection is loaded with the student, exported by nobody, and read by an unsharded run."""
    straight, resumed = as_two_processes("fsdp_learned", tmp_path, "fsdp2")
    settings: dict[str, Any] = {"optim": "adamw_torch", **LEARNED_SHARDED}
    trainer = make_trainer("classification", tmp_path / "alone", **settings, **split(8))
    for one, other in zip(straight, train(trainer).logs, strict=True):
        names = [name for name in other if "/" in name or name in ("loss", "grad_norm", "agreement")]
        assert {name: one[name] for name in names} == pytest.approx({name: other[name] for name in names}, rel=1e-4)
    assert [log["loss"] for log in resumed] == [log["loss"] for log in straight[2:]]
    directory = tmp_path / "checkpoint-3"
    learned = load_file(directory / "distillation.safetensors")
    assert set(learned) == set(trainer.terms.learned.state_dict())
    torch.testing.assert_close(learned["0.projection.weight"], trainer.terms.learned["0"].projection.weight.detach())
    _, info = transformers.BertForSequenceClassification.from_pretrained(
        directory.parent / "exported", output_loading_info=True
    )
    assert not any(info.values())
    assert not (directory.parent / "exported" / "distillation.safetensors").exists()
