"""The notebooks of `examples/` run as they stand, on tiny models and data."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from notebooks import run_notebook
from runs import REPO, WriteRecipe, run

from hf_distill.errors import UserError

if TYPE_CHECKING:
    from conftest import MakeModel, Splits

EXAMPLES = REPO / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
nbformat = pytest.importorskip("nbformat")


@pytest.fixture
def tiny(sentiment_csv: Splits, make_model: MakeModel, tmp_path: Path) -> dict[str, Any]:
    """Return the parameters that every notebook has: data as the quickstart's, a teacher, a place to write."""
    data = tmp_path / "data"
    data.mkdir()
    shutil.copy(sentiment_csv.train, data / "labelled.csv")
    shutil.copy(sentiment_csv.validation, data / "validation.csv")
    (data / "transfer.csv").write_text("sentence\n" + "a charming story\nthe plot is dull\nvery fresh\n" * 8)
    teacher = make_model("bert", layers=2, seed=1)
    return {"DATA": str(data), "TEACHER": str(teacher), "OUT": str(tmp_path / "examples")}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_committed_as_it_ran(path: Path) -> None:
    """Cells without their outputs, a dead link or a directory of ours are all that a reader on GitHub would see."""
    notebook = nbformat.read(path, as_version=4)
    assert notebook.cells[0].source.startswith("# ")
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if any(cell.outputs for cell in code):
        assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "not in one go"
    assert path.stat().st_size < 200_000
    text = "".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    links = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    assert [link for link in links if not (EXAMPLES / link).exists()] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_says_what_to_run_first(path: Path, tmp_path: Path) -> None:
    """Without a finished quickstart, an `IndexError` of an empty list would be all that a newcomer sees."""
    (tmp_path / "labelled.csv").write_text("sentence,label\n")
    (tmp_path / "_teacher/interrupted/checkpoint-4").mkdir(parents=True)
    places = {"DATA": str(tmp_path), "TEACHER": str(tmp_path / "_teacher/*"), "OUT": str(tmp_path / "out")}
    with pytest.raises(UserError, match=r"^Run `make quickstart` .*$"):
        run_notebook(path, tmp_path, **places)
    assert "make quickstart" in nbformat.read(path, as_version=4).cells[0].source
    assert not (tmp_path / "out").exists()


def test_a_cell_that_fails_is_one_line_and_leaves_the_notebook(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`make examples` would end in the traceback of a kernel, and half of its outputs on GitHub."""
    pytest.importorskip("nbclient")
    from nbformat import v4

    monkeypatch.syspath_prepend(str(REPO / "scripts"))
    import run_notebooks

    path = tmp_path / "one.ipynb"
    cells = ["print('it began')", "from hf_distill.errors import UserError\nraise UserError('Run this first.')"]
    before = nbformat.writes(v4.new_notebook(cells=[v4.new_code_cell(cell) for cell in cells]))
    path.write_text(before)
    assert run_notebooks.main([str(path)]) == 2
    assert capsys.readouterr().err == "one.ipynb: Run this first.\n"
    assert path.read_text() == before


def test_python_api(tiny: dict[str, Any], tmp_path: Path) -> None:
    """A workflow that fails in its last cell, or compares with nothing, is what a newcomer would see first."""
    names = run_notebook(EXAMPLES / "python_api.ipynb", tmp_path, **tiny, KEEP=(1,))
    assert set(names["report"].models) == {"teacher", "student", "baseline"}
    assert names["student"].config.num_hidden_layers == 1
    assert (tmp_path / "examples/report/report.html").is_file()


def test_custom_objective(tiny: dict[str, Any], make_model: MakeModel, tmp_path: Path) -> None:
    """A class that only works where it was written would be copied and refused by a recipe."""
    model = str(make_model("bert", layers=2))
    names = run_notebook(EXAMPLES / "custom_objective.ipynb", tmp_path, **tiny, MODEL=model, KEEP=(1,))
    assert "objective/jeffreys" in names["trainer"].state.log_history[0]
    assert "jeffreys:Jeffreys" in names["report"].recipe


def test_shared_cached_teacher(tiny: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A mismatch that is not refused would show a reader that any cache fits any teacher."""
    run_notebook(EXAMPLES / "shared_cached_teacher.ipynb", tmp_path, **tiny, KEEP=((0,), (0, 1)))
    said = capsys.readouterr().out
    for line in ("Found: 64 examples", "of another teacher", "of other settings", "1 of 1 examples of the train split"):
        assert line in said


def test_reading_a_report(tiny: dict[str, Any], write_recipe: WriteRecipe, tmp_path: Path) -> None:
    """A field that was renamed, or rows of another order, would explain a report with the wrong numbers."""
    teacher = {"name": "pretrained", "model": tiny["TEACHER"]}
    run(write_recipe(teacher=teacher, report={"latency": False, "baseline": True}))
    names = run_notebook(EXAMPLES / "reading_a_report.ipynb", tmp_path, **tiny, RUN=str(tmp_path / "out"))
    report, right = names["report"], names["right"]
    for model in ("teacher", "student"):
        assert right[model].mean() == pytest.approx(report.models[model].metrics["accuracy"])
