"""`--check` where one of the models is not on this machine."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hf_distill import load_recipe
from hf_distill.errors import UserError
from hf_distill.models.outline import head_kind
from hf_distill.objectives import Hidden
from hf_distill.run.checks import leaves_head
from hf_distill.run.dry_run import check
from hf_distill.run.preparation import open_run

WriteRecipe = Callable[..., Path]


def test_the_side_that_is_here_is_checked(write_recipe: WriteRecipe, make_model: Any) -> None:
    """A student of the Hub must not hide that the teacher, which is here, cannot teach; nor be called checked."""
    there = {"name": "pretrained", "model": "some-user/some-model"}
    lines = check(load_recipe(write_recipe(student=there))).splitlines()
    assert (
        "not checked student some-user/some-model: no such directory, so taken as a Hub id; --check downloads"
        in next(line for line in lines if line.startswith("not checked"))
    )
    assert next(line for line in lines if line.startswith("teacher ")).endswith(" K parameters")
    assert sum(line.startswith("not checked") for line in lines) == 1
    headless = {"name": "pretrained", "model": str(make_model("bert-mlm"))}
    with pytest.raises(UserError, match=r"teacher\.model: this checkpoint is a BertForMaskedLM"):
        check(load_recipe(write_recipe(student=there, teacher=headless)))
    here = {"name": "pretrained", "model": str(make_model("bert"))}
    lines = check(load_recipe(write_recipe(student=here, teacher=there))).splitlines()
    assert [line.split(":")[0] for line in lines if line.startswith("not checked")] == [
        "not checked teacher some-user/some-model"
    ]
    assert next(line for line in lines if line.startswith("student ")).endswith(" K parameters")


def test_a_misspelt_model_among_others_is_a_mistake(
    write_recipe: WriteRecipe, make_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`m/smal` beside `m/small` passes for a Hub id: the run would ask the Hub, and `--check` call it unchecked."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    shutil.copytree(make_model("bert"), tmp_path / "m" / "small")
    (tmp_path / "data").mkdir()
    misspelt = write_recipe(
        student={"name": "pretrained", "model": "m/smal"}, teacher={"name": "pretrained", "model": "m/nothere"}
    )
    with pytest.raises(UserError) as caught:
        check(load_recipe(misspelt))
    teacher, student = caught.value.mistakes
    end = f" (looked from {tmp_path}), although there are other models in 'm'."
    assert teacher.endswith(f"teacher.model: no such directory: 'm/nothere'{end}")
    assert student.endswith(f"student.model: no such directory: 'm/smal'{end} Did you mean 'm/small'?")
    # A directory without models says nothing about a Hub id.
    plan = check(load_recipe(write_recipe(student={"name": "pretrained", "model": "data/model"})))
    assert "not checked student data/model" in plan
    # Nor does one where it lies in the Hub's cache.
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: "/cache/config.json")
    plan = check(load_recipe(write_recipe(student={"name": "pretrained", "model": "m/other"})))
    assert "not checked student m/other" in plan


def test_a_name_like_that_of_a_model_here_is_asked_about(
    write_recipe: WriteRecipe, make_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`smal` beside `small` may be on the Hub, but most likely is not; and only a model is like a model."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(make_model("bert"), tmp_path / "small")
    (tmp_path / "data1").mkdir()
    (tmp_path / "smal.txt").touch()

    def said(model: str) -> str:
        plan = check(load_recipe(write_recipe(student={"name": "pretrained", "model": model}))).splitlines()
        return next(line for line in plan if line.startswith("not checked"))

    assert said("smal").endswith(
        "no such directory, so taken as a Hub id; --check downloads nothing. Did you mean 'small'?"
    )
    assert said("data2").endswith("--check downloads nothing")
    assert said("gpt2").endswith("--check downloads nothing")


@pytest.mark.parametrize(
    ("objective", "said"),
    [
        ({"name": "hidden"}, "hidden: layers [[1, 2], [2, 4]]"),
        ({"name": "attention", "layers": "tail"}, "attention (layers tail): layers [[1, 3]]"),
        (
            {"name": "hidden", "layers": "similarity"},
            "hidden (layers similarity): layers are paired by their similarity, measured before training",
        ),
        ({"name": "kl"}, "kl"),
    ],
)
def test_the_plan_says_which_layers_a_rule_pairs(
    write_recipe: WriteRecipe, objective: dict[str, Any], said: str
) -> None:
    """A rule that pairs other layers than its reader thinks would train on them without a word."""
    lines = check(load_recipe(write_recipe(objectives=[objective]))).splitlines()
    assert [line for line in lines if line.startswith("objective")] == [f"objective   {said}"]


def test_the_plan_says_where_a_projection_is_learned(write_recipe: WriteRecipe, make_model: Any) -> None:
    """Between different widths something is learned beside the student; attention maps have no width."""
    narrow = {"name": "pretrained", "model": str(make_model("bert", hidden_size=16))}
    recipe = write_recipe(student=narrow, objectives=[{"name": "hidden", "layers": "last"}, {"name": "attention"}])
    hidden, attention = [line for line in check(load_recipe(recipe)).splitlines() if line.startswith("objective")]
    assert ", through learned projections from 16 to " in hidden
    assert "projection" not in attention


def noted(plan: str) -> list[str]:
    """Return what a plan notes, but for how batches are made, which it always says."""
    return [line for line in plan.splitlines() if line.startswith("note") and "of similar length" not in line]


def test_the_plan_says_that_a_schedule_will_not_get_to_its_end(write_recipe: WriteRecipe) -> None:
    """Written in steps for another training, a schedule is cut off; hours later nothing shows that it was."""
    kl = {"name": "kl", "temperature": {"start": 4.0, "end": 1.0, "over": 2000}}

    def notes(*overrides: str, **sections: Any) -> list[str]:
        recipe = load_recipe(write_recipe(objectives=[kl], **sections), overrides)
        return noted(check(recipe))

    assert notes("training.max_steps=300") == [
        "note        objectives[0].temperature is to go from 4 to 1 over 2,000 steps, and the training has 300: it "
        "ends at 3.55, and evaluations take 1. Set over to at most 300, or to a share of the training (1 is all)."
    ]
    assert notes("training.max_steps=2000") == []
    assert notes() == [], "how many steps an epoch has is known once the data is read"
    stages = [{"objectives": [kl], "training": {"max_steps": steps}} for steps in (2000, 500)]
    (line,) = noted(check(load_recipe(write_recipe(objectives=None, stages=stages))))
    assert "stages[1].objectives[0].temperature" in line


def test_the_plan_says_that_there_are_fewer_classes_than_an_objective_compares(
    write_recipe: WriteRecipe, make_model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`top: 500` of two classes is all of them; whoever sweeps it would compare equal runs."""

    def notes(objectives: list[dict[str, Any]], **sections: Any) -> list[str]:
        return noted(check(load_recipe(write_recipe(objectives=objectives, **sections))))

    labels = {"name": "labels"}
    said = "objectives[1].top is {}, and there are {} classes: all of them are compared"
    assert notes([labels, {"name": "ranking", "top": 500}]) == [f"note        {said.format(500, 2)}"]
    assert notes([labels, {"name": "ranking"}]) == [f"note        {said.format(8, 2)}"]
    assert notes([labels, {"name": "ranking", "top": 2}]) == []
    (line,) = notes([labels, {"name": "input_gradient", "classes": 3}])
    assert line == "note        objectives[1].classes is 3, and there are 2 classes: all of them are compared"
    bare = {"name": "finetuned", "model": str(make_model("bert-bare"))}
    assert notes([labels, {"name": "ranking"}], teacher=bare) == [], "how many there are is in the data"
    texts = tmp_path / "texts.json"
    texts.write_text(json.dumps([{"text": "a great film"}] * 4))
    model = make_model("llama-lm")
    language = {
        "task": "text-generation",
        "data": {"path": {"train": str(texts), "eval": str(texts)}},
        "teacher": {"name": "pretrained", "model": str(model)},
    }
    tokens = len(json.loads((model / "tokenizer.json").read_text())["model"]["vocab"])
    found = notes([labels, {"name": "ranking", "top": 500}], **language)
    assert found == [f"note        {said.format(500, tokens)}"]
    assert notes([labels, {"name": "ranking"}], **language) == []
    open_run(load_recipe(write_recipe(objectives=[labels, {"name": "ranking"}])), False)
    assert said.format(8, 2) in "".join(capsys.readouterr()), "a run says it too"


def test_the_plan_says_that_nothing_trains_the_head(write_recipe: WriteRecipe) -> None:
    """A student trained on hidden states alone answers with a random head, and its report looks like any other."""

    def notes(*objectives: dict[str, Any], **sections: Any) -> list[str]:
        recipe = load_recipe(write_recipe(objectives=[*objectives], **sections))
        return noted(check(recipe))

    hidden, labels = {"name": "hidden"}, {"name": "labels"}
    (note,) = notes(hidden)
    assert note.startswith("note        no objective trains the head of the student")
    assert notes(hidden, labels) == []
    assert notes(hidden, {**labels, "weight": {"start": 0.0, "end": 1.0}}) == []
    assert notes(hidden, {**labels, "weight": 0.0}) == [note]
    for auto_class in ("AutoModelForMaskedLM", "AutoModel"):  # tied to the embeddings; none
        assert not leaves_head((Hidden(),), head_kind(auto_class))


def test_the_plan_is_read_by_people(write_recipe: WriteRecipe, make_model: Any) -> None:
    """`0.0 M parameters` is the size of no model, and a mapping in Python's braces is no recipe."""
    from transformers import AutoModelForSequenceClassification

    teacher = make_model("bert", layers=4, seed=1)
    entry = {"name": "finetuned", "model": str(teacher), "training": {"num_train_epochs": 2, "fp16": False}}
    recipe = write_recipe(
        teacher={"name": "cached", "teacher": entry},
        student={"name": "copy_layers", "layers": 1},
        training={
            "lr_scheduler_type": "cosine",
            "lr_scheduler_kwargs": {"num_cycles": 0.5},
            "include_for_metrics": ["inputs"],
        },
    )
    lines = dict(line.split(maxsplit=1) for line in check(load_recipe(recipe)).splitlines())
    size = AutoModelForSequenceClassification.from_pretrained(teacher).num_parameters()
    assert lines["teacher"].startswith("cached (teacher finetuned (model ")
    assert "training (num_train_epochs 2, fp16 false)))" in lines["teacher"]
    assert lines["teacher"].endswith(f"bert, 4 layers of 32, {size / 1000:.1f} K parameters")
    assert ": bert, 1 layer of 32, " in lines["student"]
    assert "lr_scheduler_kwargs (num_cycles 0.5), include_for_metrics [inputs]" in lines["training"]
    assert "disable_tqdm true" in lines["training"]
    assert not set("{}'") & set("".join(lines.values()).replace(str(teacher), ""))


def test_the_plan_says_at_a_glance_why_half_the_layers_is_not_half_the_size(
    write_recipe: WriteRecipe, make_model: Any
) -> None:
    """Half the layers of a small encoder is 1.3 times fewer parameters: its user learned that from the report."""
    teacher = {"name": "pretrained", "model": str(make_model("bert", vocab_size=2000))}
    lines = check(load_recipe(write_recipe(teacher=teacher))).splitlines()
    theirs, ours = (line.split(maxsplit=1)[1] for line in lines if line.startswith("parameters "))
    weights = (2000 + 64 + 2 + 2) * 32 + 4 * 8544 + 33 * 32 + 33 * 2  # tables, layers, pooler, classifier
    assert theirs.startswith("teacher: embeddings 66.2 K (65 %), layers 34.2 K (34 %), head 66, rest 1.1 K (1 %)")
    assert theirs.endswith(f"{4 * weights / 1e6:.1f} MB as float32")
    assert ours.endswith("1.2 times fewer than the teacher, since 78 % are embeddings, as many as before")
    assert "larger than its teacher" not in "".join(lines)
    more = {"name": "from_config", "overrides": {"num_hidden_layers": 12}}
    text = check(load_recipe(write_recipe(teacher=teacher, student=more)))
    assert "times more than the teacher" in text
    assert "is larger than its teacher" in text


def test_rows_of_the_plan_are_read_by_people(write_recipe: WriteRecipe, make_model: Any, tmp_path: Path) -> None:
    """The first row is there to see whether the right column was taken; an answer is a mapping of lists."""
    squad = tmp_path / "squad.json"
    row = {
        "question": "what was it ?",
        "context": "the film was great " * 10,
        "answers": {"text": ["great"], "answer_start": [13]},
    }
    squad.write_text(json.dumps([row] * 4))
    model = {"name": "pretrained", "model": str(make_model("bert-qa"))}
    recipe = write_recipe(
        task={"name": "question-answering", "stride": 16},
        data={"path": {"train": str(squad), "eval": str(squad)}},
        teacher=model,
    )
    lines = check(load_recipe(recipe)).splitlines()
    (first,) = [line for line in lines if line.startswith("train ")]
    assert first.endswith("answers (text [great], answer_start [13])")
    assert "context the film was great the film was great the film was great ...," in first


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "text,label\ngood,7\n" + "bad,0\ngood,1\n" * 5),  # a label that the teacher does not know
        ("a.csv", "text,label\n" + "good,1\n" * 5),  # one class
        ("a.csv", "text,label\n" + "good,1\nbad,0\n" * 600 + ",1\n"),  # far below the first row
        ("a.csv", 'text,label\n"good,1\nbad,0\n'),
        ("a.jsonl", b'{"text": "good", "label": 1}\n{"text": "\xff", "label": 0}\n'),
        ("a.jsonl", '{"text": "good", "label": 1}\n{"text": 3, "label": 0}\n'),
        ("a.jsonl", '{"text": "good", "label": 1}\n{"text": "bad", "label": [0]}\n'),
    ],
)
def test_a_check_refuses_the_rows_that_the_run_refuses(
    name: str, content: str | bytes, write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    """`--check` read a first row: a bad label in it was found when the models were loaded, hours into a queue."""
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    recipe = load_recipe(write_recipe(data={"path": {"train": str(path), "eval": str(path)}}))
    said = []
    for look in (check, lambda recipe: open_run(recipe, restart=False)):
        with pytest.raises(UserError) as caught:
            look(recipe)
        said.append(caught.value.mistakes)
    assert said[0] == said[1]


def test_a_check_reads_small_data_whole_and_says_what_it_leaves_out(
    write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sorted data has one class in its first rows: what is read of large data must not be taken for all of it."""
    path = tmp_path / "a.csv"
    path.write_text("text,label\n" + "good,1\n" * 3000 + "bad,0\n" * 3000)
    data = {"path": {"train": str(path)}, "splits": {"eval": 0.1}}
    recipe = load_recipe(write_recipe(data=data))
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr("hf_distill.data.splits._SMALL_BYTES", 100)
    lines = check(recipe).splitlines()
    assert [line for line in lines if line.startswith("not checked")] == [
        "not checked data: all rows after the first 1,000"
    ]
    assert sorted(tmp_path.rglob("*")) == before


def test_a_check_shows_a_held_out_split(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    """What is held out is cut as in the run, so that its classes can be looked at beforehand."""
    path = tmp_path / "a.csv"
    path.write_text("text,label\n" + "".join(f"good {i},1\nbad {i},0\n" for i in range(50)))
    recipe = load_recipe(write_recipe(data={"path": {"train": str(path)}, "splits": {"eval": 0.2}}))
    lines = check(recipe).splitlines()
    assert any(line.startswith("train       train, 80 rows, the first: ") for line in lines)
    assert any(line.startswith("eval        0.2, 20 rows, the first: ") for line in lines)
    assert len([line for line in lines if line.startswith("classes     ")]) == 2
