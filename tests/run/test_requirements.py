"""What a run will ask for is told by `--check` and at its beginning, in the same line."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from runs import run

from hf_distill import load_recipe
from hf_distill.errors import UserError
from hf_distill.run.dry_run import check

WriteRecipe = Callable[..., Path]

LOSS = """
from typing import ClassVar
from hf_distill.component import component
from hf_distill.objectives import RowObjective

@component
class {name}(RowObjective):
    name: ClassVar[str] = "mine"

    def rows(self, student, teacher, labels):
        return (student - teacher).abs().mean(-1)
"""


def told(path: Path) -> list[str]:
    """Return what `--check` and the run refuse alike; nothing may have been written."""
    found = []
    for open_it in (lambda: check(load_recipe(path)), lambda: run(path)):
        with pytest.raises(UserError) as caught:
            open_it()
        found.append([line.partition(": ")[2] for line in caught.value.mistakes])
    assert found[0] == found[1]
    assert not (path.parent / "out").exists()
    return found[0]


@pytest.fixture(autouse=True)
def only_this_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a recipe adds to the search path is gone after a test."""
    monkeypatch.setattr(sys, "path", [*sys.path])


@pytest.mark.parametrize(
    ("training", "key", "words"),
    [
        ({"report_to": "wandb"}, "report_to", "package wandb, which is not installed here: pip install wandb"),
        ({"report_to": ["none", "mlflow"]}, "report_to", "Transformers reports to no 'none'"),
        ({"report_to": "wandbb"}, "report_to", "Did you mean 'wandb'?"),
        ({"optim": "adamw_bnb_8bit"}, "optim", "package bitsandbytes, which is not installed here: pip install"),
        ({"optim": "galore_adamw"}, "optim", "package galore-torch"),
        ({"optim": "lomo"}, "optim", "package lomo-optim"),
        ({"optim": "adamw_torch_8bit"}, "optim", "package torchao"),
        ({"optim": "grokadamw"}, "optim", "package grokadamw"),
        ({"optim_args": "betas"}, "optim_args", "wanted key=value"),
        ({"use_liger_kernel": True}, "use_liger_kernel", "package liger-kernel"),
        ({"deepspeed": "zero2.json"}, "deepspeed", "package deepspeed"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "lr_scheduler_type", "min_lr"),
        ({"lr_scheduler_kwargs": {"cycles": 2}}, "lr_scheduler_kwargs", "unexpected keyword argument 'cycles'"),
        ({"dataloader_prefetch_factor": 2}, "dataloader_prefetch_factor", "dataloader_num_workers > 0"),
        ({"accelerator_config": {"none": 1}}, "accelerator_config", "unexpected keyword argument 'none'"),
        ({"num_train_epochs": 0}, "num_train_epochs", "nothing would be trained"),
    ],
)
def test_training_arguments(
    training: dict[str, Any], key: str, words: str, write_recipe: WriteRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A traceback of Transformers when the trainer is made, or when its optimizer is, after everything was loaded."""
    for package in ("bitsandbytes", "torchao"):  # the only ones of these that the tests install
        monkeypatch.setattr(f"transformers.trainer_optimizer.is_{package}_available", lambda: False)
    (line,) = told(write_recipe(training=training))
    assert line.startswith(f"training.{key}: ")
    assert words in line


def test_every_training_is_asked(write_recipe: WriteRecipe, make_model: Any) -> None:
    """A stage, or a teacher that is fine-tuned first, with an optimizer that is not here fails after hours."""
    teacher = {"name": "finetuned", "model": str(make_model("bert-bare")), "training": {"optim": "lomo"}}
    objectives = [{"name": "kl"}]
    stages = [{"objectives": objectives}, {"objectives": objectives, "training": {"optim": "adalomo"}}]
    lines = told(write_recipe(teacher=teacher, objectives=None, stages=stages))
    assert [line.partition(":")[0] for line in lines] == ["stages[1].training.optim", "teacher.training.optim"]


def test_a_recipe_stays_as_it_is(write_recipe: WriteRecipe) -> None:
    """Transformers writes defaults into the mappings that it checks: another recipe would be kept, and not resumed."""
    recipe = load_recipe(write_recipe(training={"fsdp_config": {"xla": False}, "report_to": "none"}))
    check(recipe)
    assert recipe.training["fsdp_config"] == {"xla": False}


def test_metrics(write_recipe: WriteRecipe, make_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--check` was silent on a metric that the run refused after it had tokenised everything."""
    script = tmp_path / "stars.py"
    script.write_text("import a_package_that_is_not_here\n")
    (line,) = told(write_recipe(evaluation={"metrics": [f"evaluate/{script}"]}))
    assert line.startswith("evaluation.metrics: cannot load")
    assert "a_package_that_is_not_here" in line
    monkeypatch.setattr("hf_distill.locations.importlib.util.find_spec", lambda name: None)
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"text": "a film", "summary": "film"}) + "\n")
    path = write_recipe(
        task="summarization",
        data={"path": {"train": str(data), "validation": str(data)}},
        teacher={"name": "pretrained", "model": str(make_model("t5"))},
    )
    (line,) = told(path)
    assert line == (
        "evaluation.metrics: 'rouge2' needs the package rouge-score, which is not installed here: "
        "pip install 'hf-distill[text]'"
    )


def test_no_batch_is_left(write_recipe: WriteRecipe) -> None:
    """Transformers trains nothing, says nothing, and the report was that of a student as it began."""
    path = write_recipe(training={"per_device_train_batch_size": 1000, "dataloader_drop_last": True})
    (line,) = told(path)
    assert line.startswith("training.dataloader_drop_last: ")
    assert "nothing would be trained" in line


# ---- Code from outside -----------------------------------------------------------------------------------------------


def remote(source: Path, target: Path) -> Path:
    """Copy a model to where its classes come with it, as on the Hub."""
    shutil.copytree(source, target)
    (target / "mine.py").write_text(
        "from transformers import BertConfig, BertForSequenceClassification\n"
        "class MyConfig(BertConfig):\n    model_type = 'mine'\n"
        "class MyModel(BertForSequenceClassification):\n    config_class = MyConfig\n"
    )
    config = json.loads((target / "config.json").read_text())
    auto = {"AutoConfig": "mine.MyConfig", "AutoModelForSequenceClassification": "mine.MyModel"}
    config |= {"model_type": "mine", "architectures": ["MyModel"], "auto_map": auto}
    (target / "config.json").write_text(json.dumps(config))
    return target


def test_models_with_code_of_their_own(write_recipe: WriteRecipe, make_model: Any, tmp_path: Path) -> None:
    """`--check` ended in a traceback where the run worked: two ways to open a model."""
    model = str(remote(make_model("bert"), tmp_path / "mine"))
    for teacher, student in ((True, False), (False, True), (True, True)):
        path = write_recipe(
            teacher={"name": "pretrained", "model": model, "trust_remote_code": True}
            if teacher
            else {"name": "pretrained", "model": str(make_model("bert"))},
            student={"name": "pretrained", "model": model, "trust_remote_code": True}
            if student
            else {"name": "copy_layers", "layers": 2},
            training={"max_steps": 1, "output_dir": str(tmp_path / f"out-{teacher}-{student}")},
        )
        plan = check(load_recipe(path))
        assert "mine, 4 layers" in plan
        assert f"code        the repository of the {'teacher' if teacher else 'student'}'s model {model}" in plan
        assert run(path).student.parameters


def test_a_module_beside_the_recipe(
    write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file next to the recipe was found from one directory and not from another; what runs is known by its path."""
    (tmp_path / "losses_beside.py").write_text(LOSS.format(name="Mine"))
    path = write_recipe(objectives=[{"name": "losses_beside:Mine"}], training={"max_steps": 1})
    monkeypatch.chdir("/")
    where = f"losses_beside:Mine, of {tmp_path / 'losses_beside.py'}"
    assert f"code        {where}" in check(load_recipe(path))
    run(path)
    assert f"runs code from outside: {where}" in capsys.readouterr().out


def test_two_modules_of_one_name(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    """Python keeps the first: the second recipe of a sweep would train with the loss of the other."""
    first, second = tmp_path / "a", tmp_path / "b"
    for folder in (first, second):
        folder.mkdir()
        (folder / "losses_of_one_name.py").write_text(LOSS.format(name="Mine"))
        shutil.copy(write_recipe(objectives=[{"name": "losses_of_one_name:Mine"}]), folder)
    load_recipe(first / "recipe.yaml")
    with pytest.raises(UserError, match=r"objectives\[0\]\.name: .*another module of this name") as caught:
        load_recipe(second / "recipe.yaml")
    assert all(str(folder) in str(caught.value) for folder in (first, second))
    load_recipe(first / "recipe.yaml")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("exit(3)", "ended the process (exit status 3)"),
        ("import sys\nsys.exit()", "must not exit on import"),
        ("1 / 0", "ZeroDivisionError: division by zero at "),
        ("import nothing_here", "ModuleNotFoundError: No module named 'nothing_here'"),
        ("def f(:", "SyntaxError"),
    ],
)
def test_modules_that_cannot_be_imported(code: str, words: str, write_recipe: WriteRecipe, tmp_path: Path) -> None:
    """`exit()` at the end of a script ended the run with status 0 and without a word."""
    (tmp_path / "losses_that_fail.py").write_text(code)
    path = write_recipe(objectives=[{"name": "losses_that_fail:Mine"}])
    with pytest.raises(UserError, match=r"objectives\[0\]\.name: ") as caught:
        load_recipe(path)
    assert words in str(caught.value)


FAULTY = (
    LOSS
    + """
    how: str = ""

    def __post_init__(self):
        if self.how == "made":
            raise KeyError("no such thing")

    def check(self, student, teacher):
        if self.how == "checked":
            raise AttributeError("no num_heads")
"""
)


@pytest.mark.parametrize(
    ("how", "words"),
    [("made", "Mine raised KeyError"), ("checked", "objective 'mine': AttributeError: no num_heads (")],
)
def test_code_from_outside_that_raises(how: str, words: str, write_recipe: WriteRecipe, tmp_path: Path) -> None:
    """A traceback through all of this package for a slip in a class of one's own."""
    module = f"losses_that_raise_when_{how}"  # another one for each: Python keeps the first
    (tmp_path / f"{module}.py").write_text(FAULTY.format(name="Mine"))
    (line,) = told(write_recipe(objectives=[{"name": f"{module}:Mine", "how": how}]))
    assert line.startswith("objectives[0]: ")
    assert words in line


@pytest.mark.parametrize("method", ["gptq", "awq", "compressed-tensors"])
def test_a_quantized_checkpoint(method: str, write_recipe: WriteRecipe, make_model: Any, tmp_path: Path) -> None:
    """Its package was missed when the weights were loaded, after the data had been tokenised."""
    model = shutil.copytree(make_model("bert"), tmp_path / method)
    config = json.loads((model / "config.json").read_text())
    settings = {"quant_method": method, "bits": 4, "group_size": 128, "w_bit": 4, "q_group_size": 128}
    (model / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    student = {"name": "pretrained", "model": str(make_model("bert"))}
    (line,) = told(write_recipe(teacher={"name": "pretrained", "model": str(model)}, student=student))
    assert line.startswith(f"teacher.model: the weights of '{model}' are quantized ({method}): ")
    assert "pip install" in line
