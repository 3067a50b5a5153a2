"""Code that comes with a model runs where the recipe says so of this model, and nowhere else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from runs import WriteRecipe, run

from hf_distill import load_recipe
from hf_distill.models.loading import open_config, open_tokenizer
from hf_distill.run.dry_run import check

HEAD = "AutoModelForSequenceClassification"
CODE = """
import pathlib
pathlib.Path({mark!r}).mkdir(exist_ok=True)
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer
class Config(BertConfig): model_type = {kind!r}
class Model(BertForSequenceClassification): config_class = Config
class Tokenizer(BertTokenizer): pass
"""

Model = Callable[[str, bool], tuple[Path, Path]]


@pytest.fixture
def with_code(make_model: Any, tmp_path: Path) -> Model:
    """Return a function that makes a model with code that leaves a mark, and the mark.

    Needed: whether Transformers does not know its type, and needs the code.
    """

    def make(name: str, needed: bool) -> tuple[Path, Path]:
        place, mark = shutil.copytree(make_model("bert"), tmp_path / name), tmp_path / f"ran-{name}"
        kind = f"own_{name}" if needed else "bert"
        (place / "own.py").write_text(CODE.format(mark=str(mark), kind=kind))
        auto = {"AutoConfig": "own.Config", HEAD: "own.Model", "AutoModel": "own.Model"}
        for file, added in (
            ("config.json", {"model_type": kind, "auto_map": auto}),
            ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["own.Tokenizer", None]}}),
        ):
            content = json.loads((place / file).read_text())
            (place / file).write_text(json.dumps({**content, **added}))
        return place, mark

    return make


def entry(model: Path, trust: bool) -> dict[str, Any]:
    return {"name": "pretrained", "model": str(model), "trust_remote_code": trust}


@pytest.mark.parametrize("trusted", ["teacher", "student"])
def test_trust_of_one_model_is_not_that_of_the_other(trusted: str, with_code: Model, write_recipe: WriteRecipe) -> None:
    """A student of a known type ran the code that its repository names, as soon as the teacher's code was trusted."""
    (one, its_mark), (other, not_asked) = with_code("one", True), with_code("other", False)
    models = {"teacher": other, "student": other, trusted: one}
    sections = {side: entry(model, side == trusted) for side, model in models.items()}
    path = write_recipe(**sections, training={"max_steps": 1}, report={"latency": False, "baseline": True})
    recipe = load_recipe(path)
    plan = check(recipe)
    assert [line.split(None, 1)[1] for line in plan.splitlines() if line.startswith("code ")] == [
        f"the repository of the {trusted}'s model {one} (trust_remote_code)"
    ]
    run(path)
    assert its_mark.exists()
    assert not not_asked.exists()


def test_trust_of_one_member_and_in_a_chain(with_code: Model, write_recipe: WriteRecipe) -> None:
    """A chain opens each student again, as a teacher, with the trust of the whole recipe."""
    (one, its_mark), (other, not_asked) = with_code("one", True), with_code("other", False)
    path = write_recipe(
        teacher={"name": "ensemble", "teachers": [entry(one, True), entry(other, False)]},
        student=None,
        chain=[entry(other, False), entry(other, False)],
        training={"max_steps": 1},
    )
    plan = check(load_recipe(path))
    assert f"model {one} (trust_remote_code)" in plan
    assert f"model {other} (trust_remote_code)" not in plan
    run(path)
    assert its_mark.exists()
    assert not not_asked.exists()


def test_what_is_saved_names_no_code(with_code: Model, write_recipe: WriteRecipe, tmp_path: Path) -> None:
    """A student that was opened without its repository's code was saved with that code's name: whoever then trusts the
    student, which they made themselves, runs it."""
    other, mark = with_code("other", False)
    path = write_recipe(student=entry(other, False), tokenizer=str(other), training={"max_steps": 1})
    run(path)
    for name in ("config.json", "tokenizer_config.json"):
        assert "auto_map" not in json.loads((tmp_path / "out" / name).read_text()), name
    assert not mark.exists()


def test_a_named_tokenizer_is_not_trusted(with_code: Model, make_model: Any, write_recipe: WriteRecipe) -> None:
    """`tokenizer: NAME` has no trust_remote_code of its own, so that its code never runs."""
    one, mark = with_code("one", True)
    plain = str(make_model("bert"))
    models = {side: entry(Path(plain), True) for side in ("teacher", "student")}
    run(write_recipe(**models, tokenizer=str(one), training={"max_steps": 1}))
    assert not mark.exists()


def test_opened_without_code(with_code: Model) -> None:
    """What a configuration or a tokenizer says about code is gone where that code may not run."""
    other, mark = with_code("other", False)
    config: Any = open_config(str(other))
    assert not hasattr(config, "auto_map")
    assert "auto_map" not in open_tokenizer(str(other)).init_kwargs
    assert not mark.exists()
