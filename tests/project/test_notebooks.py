"""The notebooks of `examples/` run as they stand, on tiny models and data."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from notebooks import run_notebook
from runs import REPO, WriteRecipe, run

if TYPE_CHECKING:
    from conftest import MakeModel, Splits

EXAMPLES = REPO / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
pytest.importorskip("nbformat")


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
    import nbformat

    notebook = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    assert notebook.cells[0].source.startswith("# ")
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if any(cell.outputs for cell in code):
        assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "not in one go"
    assert path.stat().st_size < 200_000
    text = "".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    links = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    assert [link for link in links if not (EXAMPLES / link).exists()] == []


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
