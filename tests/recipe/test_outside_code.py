"""`--check` of a stranger's recipe: it says which code a run would run, looks at its source, and runs none of it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from runs import WriteRecipe

from hf_distill.cli import main
from hf_distill.recipe.source_code import find_file

MARKED = "import pathlib\npathlib.Path({mark!r}).mkdir(exist_ok=True)\n"
LOSS = '''
from typing import ClassVar
import torch
from hf_distill.component import component
from hf_distill.objectives import RowObjective

class Between(RowObjective):
    pass

@component
class Mine(Between):
    """Mine."""
    name: ClassVar[str] = "mine"
    power: int
    scale: float = 1.0
    def rows(self, student, teacher, labels):
        return torch.zeros(len(student))

@component
class Other:
    pass

class Bare(RowObjective):
    pass

def score(predictions, references):
    pathlib.Path({mark!r}).mkdir(exist_ok=True)
    return 1.0

def wrong(one):
    return 1.0
'''

Said = Callable[..., tuple[int, str, str]]


@pytest.fixture
def checked(write_recipe: WriteRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Said:
    """Return a function that checks a recipe beside a module that leaves a mark, and returns status and what is said.

    The mark must not be there, and the module not be imported.
    """
    mark, module = tmp_path / "ran", "code_of_a_stranger"
    (tmp_path / f"{module}.py").write_text(MARKED.format(mark=str(mark)) + LOSS.format(mark=str(mark)))

    def check(*overrides: str, **sections: Any) -> tuple[int, str, str]:
        path = write_recipe(**sections)
        capsys.readouterr()
        status = main([str(path), *overrides, "--check"])
        assert not mark.exists()
        assert module not in sys.modules
        said = capsys.readouterr()
        return status, said.out, said.err

    return check


def test_a_loss_beside_others(checked: Said, tmp_path: Path) -> None:
    """The rest of the recipe is looked at as ever."""
    mine = {"name": "code_of_a_stranger:Mine", "power": 2}
    status, out, err = checked(objectives=[{"name": "kl"}, mine])
    assert status == 0, err
    assert f"code        code_of_a_stranger:Mine, of {tmp_path / 'code_of_a_stranger.py'}\n" in out
    assert "not checked objectives[1]: its code runs in a run, and not in --check" in out
    assert "\ntrain       " in out


@pytest.mark.parametrize(
    "section",
    [
        {"objectives": [{"name": "code_of_a_stranger:Mine", "power": 2}]},
        {"teacher": {"name": "code_of_a_stranger:Anything"}},
        {"student": "code_of_a_stranger:Anything"},
        {"task": "code_of_a_stranger:Anything"},
        {"stages": [{"objectives": [{"name": "code_of_a_stranger:Mine", "power": 1}]}], "objectives": None},
        {"teacher": {"name": "cached", "teacher": {"name": "code_of_a_stranger:Anything"}}},
        {"completions": {"backend": "code_of_a_stranger:Anything"}},
    ],
    ids=["only loss", "teacher", "student", "task", "stage", "inner teacher", "backend"],
)
def test_what_nothing_goes_without(section: dict[str, Any], checked: Said, tmp_path: Path) -> None:
    """Importing a module is running it: whatever else depends on it is then not checked, and that is said."""
    path = tmp_path / "code_of_a_stranger.py"
    path.write_text(f"{path.read_text()}\nAnything = object\n")
    status, out, err = checked(**section)
    assert status == 0, err
    assert f"of {tmp_path / 'code_of_a_stranger.py'}" in out
    assert "not checked all that depends on this code" in out


@pytest.mark.parametrize(
    ("given", "key", "said"),
    [
        ({"name": "code_of_a_stranger:Mine"}, "objectives[1].power", "missing."),
        ({"name": "code_of_a_stranger:Mine", "power": 1, "scal": 2}, "objectives[1].scal", "Did you mean 'scale'?"),
        ({"name": "code_of_a_stranger:None_"}, "objectives[1].name", "the module has no such name"),
        ({"name": "code_of_a_stranger:Other"}, "objectives[1].name", "is not a subclass of"),
        ({"name": "code_of_a_stranger:Bare"}, "objectives[1].name", "Put `@component`"),
        ({"name": "no_module_of_this_name:X"}, "objectives[1].name", "there is no such module"),
        ({"name": "damaged_code:X"}, "objectives[1].name", "SyntaxError"),
    ],
)
def test_mistakes_that_the_source_shows(
    given: dict[str, Any], key: str, said: str, checked: Said, tmp_path: Path
) -> None:
    """Without running the class its keys can still be compared with those of the recipe."""
    (tmp_path / "damaged_code.py").write_text("def (")
    status, _, err = checked(objectives=[{"name": "kl"}, given])
    assert status == 2
    assert f"{key}: " in err
    assert said in err
    assert len(err.splitlines()) == 1


def test_metrics(checked: Said, tmp_path: Path, make_model: Any) -> None:
    """`--check` called the function on the first texts, and tried a metric's script on perfect predictions."""
    script, mark = tmp_path / "scripted.py", tmp_path / "ran"
    script.write_text(MARKED.format(mark=str(mark)))
    status, out, err = checked(evaluation={"metrics": ["accuracy", f"evaluate/{script}"]})
    assert status == 0, err
    assert f"code        the metric evaluate/{script}" in out
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"a film {index}", "summary": "film"}) + "\n" for index in range(30)))
    texts = {
        "task": "summarization",
        "data": {"path": {"train": str(rows), "validation": str(rows)}},
        "teacher": {"name": "pretrained", "model": str(make_model("t5", layers=2))},
        "student": {"name": "copy_layers", "layers": 1},
    }
    status, out, err = checked(**texts, evaluation={"metrics": ["code_of_a_stranger:score", "perplexity"]})
    assert status == 0, err
    assert f"the metric code_of_a_stranger:score, of {tmp_path / 'code_of_a_stranger.py'}" in out
    for name, said in (("wrong", "must take"), ("nothing", "is not a function")):
        status, _, err = checked(**texts, evaluation={"metrics": [f"code_of_a_stranger:{name}"]})
        assert status == 2
        assert "evaluation.metrics: " in err
        assert said in err


def test_code_of_a_model(checked: Said, make_model: Any, tmp_path: Path) -> None:
    """The recipe trusts the code of its model; who only looks at the recipe has not."""
    import shutil

    model = shutil.copytree(make_model("bert"), tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    auto = {"AutoConfig": "own.Config", "AutoModelForSequenceClassification": "own.Model"}
    (model / "config.json").write_text(json.dumps({**config, "auto_map": auto}))
    (model / "own.py").write_text(MARKED.format(mark=str(tmp_path / "ran")))
    trusting = {"name": "pretrained", "model": str(model), "trust_remote_code": True}
    for section in ({"teacher": trusting}, {"student": trusting}):
        status, out, err = checked(**section)
        assert status == 0, err
        (side,) = section
        assert f"code        the repository of the {side}'s model {model} (trust_remote_code)" in out
        assert f"not checked {side} {model}: its own Python code runs in a run" in out


def test_packages_around_a_module_stay_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking for `a.b` with importlib imports `a`."""
    (tmp_path / "outer_package" / "inner").mkdir(parents=True)
    for folder in ("outer_package", "outer_package/inner"):
        (tmp_path / folder / "__init__.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "outer_package" / "inner" / "losses.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert find_file("outer_package.inner.losses") == tmp_path / "outer_package" / "inner" / "losses.py"
    assert find_file("outer_package.nothing") is None
    assert find_file("sys") is None
    assert "outer_package" not in sys.modules
