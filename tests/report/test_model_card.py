"""The model card: valid on the Hub, true to the report, silent about the machine it was made on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from reports import RECIPE, model, regression, unlabelled, whole

from hf_distill.report.model_card import card, objectives
from hf_distill.report.recipe_facts import place, recipe_of
from hf_distill.report.report import Report


def parsed(report: Report, tmp_path: Path) -> ModelCard:
    (tmp_path / "README.md").write_text(card(report), encoding="utf-8")
    return ModelCard.load(tmp_path / "README.md")


@pytest.mark.parametrize("report", [whole(), regression(), unlabelled(), whole(baseline=None), whole(recipe="")])
def test_metadata_is_valid(report: Report, tmp_path: Path) -> None:
    """The Hub refuses a push whose front matter it cannot read."""
    text = card(report)
    assert text.startswith("---\n")
    head = yaml.safe_load(text.split("\n---\n", 1)[0].removeprefix("---\n"))
    assert head["library_name"] == "transformers"
    assert head["pipeline_tag"] == report.task
    assert head["tags"] == ["distillation", "hf_distill"]
    assert text.count("\n---\n") == 1
    assert parsed(report, tmp_path).data.to_dict() == head


def test_metadata_says_what_the_report_says(tmp_path: Path) -> None:
    """Metrics of the teacher in the student's model index would be a false claim on a leaderboard."""
    data = parsed(whole(), tmp_path).data
    assert data.base_model == "textattack/bert-base-uncased-SST-2"
    assert data.datasets == ["nyu-mll/glue"]
    found = {result.metric_type: result.metric_value for result in data.eval_results}
    assert found == {"accuracy": 0.831, "f1": 0.82, "matthews": 0.66}
    first = data.eval_results[0]
    assert (first.dataset_type, first.dataset_config, first.dataset_split) == ("nyu-mll/glue", "sst2", "validation")
    assert data.model_name == "bert-small"


def test_entries_inside_entries() -> None:
    """`teacher {'name': 'ensemble', 'teachers': \\[{...` is Python; and the model of all five is named twice."""
    teacher = (
        "{name: cached, path: a/b/c, teacher: {name: ensemble, count: 5, weights: confidence, teachers: [{name: "
        "finetuned, model: big/model, training: {num_train_epochs: 3, bf16: true}}]}}"
    )
    (line,) = (one for one in card(whole(recipe=f"teacher: {teacher}")).splitlines() if one.startswith("- **Teacher**"))
    assert line == (
        "- **Teacher**: `cached` (path c) around `ensemble` (weights confidence) of 5 `finetuned` (model "
        "[big/model](https://huggingface.co/big/model), training (num train epochs 3, bf16 true))"
    )
    named = "{name: ensemble, teachers: {law: {name: pretrained, model: a/b}, art: {name: given, columns: [x, y]}}}"
    text = card(whole(recipe=f"teacher: {named}"))
    assert "`ensemble` of law: `pretrained` (model [a/b](" in text
    assert "and art: `given` (columns x and y)" in text


@pytest.mark.parametrize(
    ("path", "splits", "named"),
    [
        (
            "{train: train.csv, validation: [judged.csv, more.csv]}",
            "{train: train, eval: 'validation[:60]'}",
            "judged.csv",
        ),
        ("{train: train.csv, eval: judged.csv}", "{train: train, eval: validation}", "judged.csv"),
        ("{train: train.csv}", "{train: train, eval: 0.1}", "train.csv"),
    ],
)
def test_metrics_are_of_the_files_they_were_measured_on(path: str, splits: str, named: str, tmp_path: Path) -> None:
    """The first file is the train split's: its name beside the accuracy claims that the student was tested on it."""
    recipe = RECIPE.replace("nyu-mll/glue", path).replace("{train: train, eval: validation}", splits)
    data = parsed(whole(recipe=recipe), tmp_path).data
    assert {result.dataset_name for result in data.eval_results} == {named}


def test_numbers_that_are_none_are_left_out(tmp_path: Path) -> None:
    """`.nan` in a model index makes the Hub refuse the card."""
    data = parsed(whole(student=model(1, None, accuracy=float("nan"), f1=0.5)), tmp_path).data
    assert [result.metric_type for result in data.eval_results] == ["f1"]


def test_no_path_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of users, projects and servers stand in paths; the card is public."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    home = tmp_path / "secret-project"
    recipe = f"""
task: text-classification
tokenizer: {home}/tokenizer-x
data: {{path: {{train: {home}/a.csv, eval: [data/b.csv, "C:\\\\secret-project\\\\c.csv"]}}}}
teacher: {{name: finetuned, model: runs/mine, output_dir: ~/secret-project/teachers}}
student: {{name: pretrained, model: "package:tiny_models/models/tiny"}}
objectives: [{{name: labels}}]
evaluation: {{metrics: [evaluate/{home}/metric.py]}}
training: {{output_dir: {home}/out, logging_dir: secret-project/logs, resume_from_checkpoint: secret-project/x,
  hub_token: hf_secret-project}}
"""
    metric = f"evaluate/{home}/metric.py"
    judged = {name: model(1, None, **{metric: 0.5}) for name in ("teacher", "student", "baseline")}
    text = card(whole(recipe=recipe, metric=metric, **judged))
    assert "secret-project" not in text
    assert "secret_project" not in text
    assert str(tmp_path) not in text
    assert "runs/" not in text
    in_package = "`package:tiny_models/models/tiny`"
    for name in ("`mine`", "`a.csv`", "`b.csv`", "`c.csv`", in_package, "tokenizer-x", "# out", "metric.py"):
        assert name in text
    data = parsed(whole(recipe=recipe), tmp_path).data
    assert (data.base_model, data.datasets) == (None, None)


def test_local_and_hub() -> None:
    """A local folder published as `base_model` links to somebody else's model."""
    assert place("bert-base-uncased").on_hub
    assert place("user/data.v2").on_hub
    for local in ("./user/model", "../model", "~/model", "/model", "a/b/c", "data/train.csv", "tests", "package:a/b"):
        assert not place(local).on_hub, local


def test_the_card_has_the_table_and_the_verdict() -> None:
    """A card without what was lost is an advertisement."""
    report = whole()
    text = card(report)
    for line in report.verdict():
        assert f"- {line}" in text
    assert "| | teacher | student | student without teacher |\n|---|---:|---:|---:|\n" in text
    assert "| **accuracy** | 85.2 % | 83.1 % | 81.9 % |\n" in text
    assert "| latency, batch 1 | 20.0 ms | 10.0 ms | 10.0 ms |" in text
    assert "licence of the teacher" in text
    assert "- **Teacher**: `pretrained` (model [textattack/bert-base-uncased-SST-2](https://hugg" in text
    assert "- **Student**: `copy_layers` (layers 6)\n" in text
    assert 'pipeline("text-classification", model="bert-small")' in text


def test_facts_about_the_teacher_are_in_the_card() -> None:
    """Without it, what only a teacher knows (the privacy of a run, a prompt) would be in no published card."""
    text = card(replace(whole(), settings={"teacher": {"privacy": {"epsilon": 2.25, "delta": "1e-05"}}}))
    assert "- privacy: epsilon: 2.2" in text
    assert "- privacy: delta: 1e-05" in text


def test_the_loss_is_described() -> None:
    """Without temperature and weights nobody can repeat the run."""
    lines = objectives(recipe_of(RECIPE))
    assert lines[0].startswith("`kl` (weight 0.5, temperature 2): `T^2 * ")
    assert "Hinton" in lines[0]
    assert lines[1].startswith("`labels` (weight 0.5): ")
    defaults = objectives({"objectives": [{"name": "kl"}, {"name": "my.module:Loss", "weight": 2, "margin": 0.1}]})
    assert defaults[0].startswith("`kl` (weight 1, temperature 1): ")
    assert defaults[1] == "`my.module:Loss` (weight 2, margin 0.1)"


def test_the_recipe_can_be_copied() -> None:
    """A recipe that cannot be read again, or that ends its code block early, helps nobody."""
    text = card(whole(recipe=RECIPE + "notes: 'ends ``` here'\n"))
    block = text.split("````yaml\n")[1].split("\n````\n")[0]
    expected = recipe_of(RECIPE)
    expected["training"]["output_dir"] = "bert-small"
    assert recipe_of(block) == {**expected, "notes": "ends ``` here"}


def test_the_hub_name_is_used() -> None:
    """The snippet must load the model from where it was pushed."""
    assert 'model="me/small"' in card(whole(recipe=RECIPE + "hub: {push: true, repo_id: me/small}\n"))
