"""The directory of a run: what differs between the recipe it holds and another one: `hf_distill/run/directory.py`."""

from __future__ import annotations

from pathlib import Path

import pytest

from hf_distill.errors import UserError
from hf_distill.files.ownership import Ownership
from hf_distill.run.directory import RECIPE, RunDirectory

HELD = """\
task: text-classification
data: {path: x.csv, splits: {train: "train[:90%]"}}
teacher: {name: pretrained, model: big}
student: {name: copy_layers, layers: 6}
objectives:
- {name: kl, weight: 0.5, temperature: 2.0}
- {name: labels, weight: 0.5}
training: {output_dir: out, learning_rate: 5.0e-05, num_train_epochs: 3, fp16: false}
"""


def refused(tmp_path: Path, *changes: tuple[str, str]) -> str:
    """Return what is different, as it is told; nothing where the changed recipe may run there."""
    Ownership(tmp_path).take()
    (tmp_path / RECIPE).write_text(HELD)
    wanted = HELD
    for before, after in changes:
        assert before in wanted
        wanted = wanted.replace(before, after)
    try:
        RunDirectory(tmp_path, wanted).check(restart=False)
    except UserError as error:
        (line,) = error.mistakes
        start = f"{tmp_path} holds a run of another recipe: "
        end = " Choose another directory, go back to that recipe to resume, or start over with --restart."
        assert line.startswith(start)
        assert line.endswith(end)
        return line[len(start) : -len(end)]
    return ""


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ([("temperature: 2.0", "temperature: 4.0")], "objectives[0].temperature is 2 there and 4 here."),
        ([("learning_rate: 5.0e-05, ", "")], "training.learning_rate is 5e-05 there and left out here."),
        ([("fp16: false", "fp16: true, seed: 1")], "training.fp16 is false there and true here, training.seed is left "
                                                   "out there and 1 here."),
        ([("name: copy_layers, layers: 6", "name: pretrained, model: small")],
         "student is 'copy_layers (layers 6)' there and 'pretrained (model small)' here."),
        ([("- {name: labels, weight: 0.5}\n", "")],
         "objectives[1] is 'labels (weight 0.5)' there and left out here."),
        ([("temperature: 2.0", "temperature: {start: 4.0, end: 1.0}")],
         "objectives[0].temperature is 2 there and '4 to 1 over the training' here."),
        ([("- {name: labels, weight: 0.5}\n", "- {name: labels, weight: 0.5}\n- hidden\n")],
         "objectives[2] is left out there and 'hidden' here."),
        ([("5.0e-05", "5.00000001e-05")], "training.learning_rate is 5e-05 there and 5.00000001e-05 here."),
        ([("big", "b" * 200)], f"teacher.model is 'big' there and '{'b' * 57}...' here."),
        ([("train[:90%]", "train[:80%]"), ("big", "huge"), ("layers: 6", "layers: 3"), ("weight: 0.5", "weight: 1.0")],
         "data.splits.train is 'train[:90%]' there and 'train[:80%]' here, objectives[0].weight is 0.5 there and 1 "
         "here, objectives[1].weight is 0.5 there and 1 here, and 2 more."),
    ],
)  # fmt: skip
def test_what_differs_is_named_with_both_values(changes: list[tuple[str, str]], said: str, tmp_path: Path) -> None:
    """`(different: training)` sends somebody through thirty keys, for the one that a shell script changed."""
    assert refused(tmp_path, *changes) == said


def test_what_computes_nothing_may_differ(tmp_path: Path) -> None:
    """The same directory under another spelling is the same run; so is one with more in its report."""
    assert refused(tmp_path, ("output_dir: out", "output_dir: ../here/out")) == ""
    assert refused(tmp_path, ("training:", "report: {baseline: true}\nhub: {push: true}\ntraining:")) == ""
    assert refused(tmp_path, ("num_train_epochs: 3", "num_train_epochs: 3.0")) == ""


def test_a_recipe_that_cannot_be_read_differs_in_everything(tmp_path: Path) -> None:
    """Of a version that wrote no checksum of it: a damaged one must not end in a traceback."""
    Ownership(tmp_path).take()
    for text in ("a: [", "- 1", "", "a: &a [*a"):
        (tmp_path / RECIPE).write_text(text)
        with pytest.raises(UserError, match="holds a run of another recipe: data is left out there and "):
            RunDirectory(tmp_path, HELD).check(restart=False)
