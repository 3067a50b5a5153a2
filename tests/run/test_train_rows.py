"""`data.select` and `data.augment` in a run: which rows a student gets, what is said, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from forked import two_processes
from prepared import dataset
from runs import KL_AND_LABELS, WriteRecipe, run

from hf_distill.errors import UserError
from hf_distill.recipe.reader import load_recipe
from hf_distill.recipe.writer import dump_recipe
from hf_distill.run.dry_run import check
from hf_distill.run.fit import Fitter

MASKED = {"task": "fill-mask", "objectives": [{"name": "kl"}]}


@pytest.fixture
def rows(tmp_path: Path) -> dict[str, Any]:
    """A `data` section: 8 labelled rows, 4 without a label, and 8 transfer rows."""
    words = ["great", "dull", "moving", "awful", "fresh", "stale", "funny", "bad"]
    labelled = [{"text": f"the {word} film", "label": index % 2} for index, word in enumerate(words)]
    bare = [{"text": f"this scene is {word}", "label": None} for word in words[:4]]
    files = {
        "train": [*labelled, *bare],
        "transfer": [{"text": f"a {one} and {two} plot"} for one in words[:2] for two in words[:4]],
    }
    for name, content in files.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, content)))
    return {
        "path": {"train": str(tmp_path / "train.jsonl")},
        "splits": {"eval": 4},
        "transfer": {"path": str(tmp_path / "transfer.jsonl")},
        "labels": ["negative", "positive"],
    }


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Labels of the rows of every training, in order."""
    seen: list[list[int]] = []
    real = Fitter.fit

    def noting(self: Fitter, *args: Any, **kwargs: Any) -> Any:
        seen.append(self.rows(kwargs["objectives"])["labels"][:])
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Fitter, "fit", noting)
    return seen


def test_chosen_rows_come_from_train_and_transfer_alike(
    rows: Any, write_recipe: WriteRecipe, trained: list[Any], capsys: Any
) -> None:
    """Only one of the two could be thinned out; `--check` and the run could choose different rows."""
    path = write_recipe(data={**rows, "select": {"by": "entropy", "share": 0.5}})
    plan = check(load_recipe(path))
    run(path)
    said = capsys.readouterr().out
    (line,) = [line for line in plan.splitlines() if line.startswith("select ")]
    assert line.replace("select     ", "select:") in said
    labelled = sum(label >= 0 for label in trained[0])
    bare = len(trained[0]) - labelled
    assert f"{bare} of " in line
    whole = int(line.split(" of ")[1].split()[0])
    assert whole > bare == round(whole / 2)


def test_new_rows_have_no_label_and_count_for_no_baseline(
    rows: Any, write_recipe: WriteRecipe, make_model: Any, trained: list[Any], capsys: Any
) -> None:
    """New rows could inherit the label of their text, or be made of the eval rows."""
    masked = str(make_model("bert-mlm", layers=2))
    data = {**rows, "augment": {"name": "tinybert", "model": masked, "copies": 3}}
    path = write_recipe(data=data, report={"baseline": True, "latency": False})
    assert load_recipe(path).data.augment is not None
    assert "up to 3 rows" in check(load_recipe(path))
    run(path)
    said = capsys.readouterr().out
    student, baseline = trained
    made = int(said.split("augment: ")[-1].split()[0])
    assert f"{made} rows without a label, made of 16 train rows" in said
    assert len(student) == 16 + made
    assert sum(label >= 0 for label in student) == len(baseline)
    again = dump_recipe(load_recipe(path))
    assert "name: tinybert" in again


def test_words_with_tags_are_reworded_one_by_one(write_recipe: WriteRecipe, make_model: Any, tmp_path: Path) -> None:
    """A word replaced by two, or a list joined and cut elsewhere, would shift the tags of all words after it."""
    from hf_distill.augmentations import TinyBertAugmentation
    from hf_distill.run.train_rows import with_new_rows
    from hf_distill.tasks import TokenClassification

    tokens = [["the", "film's", "great", "zebra-plot", "."], ["dull", "new york", "cast"], ["funny", "!", "story"]]
    about = {"example_group": list("abc"), "example_weight": [1.0, 2.0, 3.0]}
    train = dataset(tokens=tokens, tags=[["O"] * len(words) for words in tokens], **about)
    how = TinyBertAugmentation(model=str(make_model("bert-mlm", layers=2)), copies=3, p=1.0)
    splits = with_new_rows(TokenClassification(), how, {"train": train, "eval": train}, lambda _: None)
    made = splits["train"].to_list()
    assert made[:3] == train.to_list()
    assert len(made) > 6
    for row in made[3:]:
        assert row["tags"] is None
        # of the row that it was made of
        assert (row["example_group"], row["example_weight"]) == (("a", 1.0) if len(row["tokens"]) == 5 else ("c", 3.0))
        assert (len(row["tokens"]), row["tokens"][0]) == (5, "the") or (len(row["tokens"]), row["tokens"][1]) == (
            3,
            "!",
        )
    assert splits["eval"] is train


def test_two_processes_learn_from_the_same_rows(
    rows: Any, write_recipe: WriteRecipe, make_model: Any, trained: list[Any], tmp_path: Path, monkeypatch: Any
) -> None:
    """Each process could ask the masked model, or choose rows of its own, and batches would mix the two."""
    from hf_distill.augmentations.masked_words import MaskedWords

    asked: list[int] = []
    real = MaskedWords.of
    monkeypatch.setattr(MaskedWords, "of", lambda self, texts: asked.append(len(texts)) or real(self, texts))
    augment = {"name": "tinybert", "model": str(make_model("bert-mlm", layers=2)), "copies": 2, "seed": 5}
    options = {"select": {"share": 0.5}, "augment": augment, "pseudo_labels": {"threshold": 0.55, "soft": False}}
    path = write_recipe(data={**rows, **options})

    def work() -> Any:
        run(path, "training.use_cpu=true")
        return trained, len(asked)

    (first, made), (second, others) = two_processes(work, tmp_path / "results")
    assert first == second
    assert (made, others) == (1, 0)
    run(path, f"training.output_dir={tmp_path / 'one'}")
    assert trained == first


@pytest.mark.parametrize(
    ("options", "sections", "key", "words"),
    [
        ({"augment": {"name": "tinybert", "model": "TEACHER"}}, {}, "augment.model", "not a masked"),
        ({"augment": {"name": "tinybert"}}, MASKED, "augment", "words themselves"),
        ({"select": {"share": 0.5}}, MASKED, "select", "no classes"),
        ({"select": {"share": 0.5}, "labels": {"0": None}}, {}, "select", "two classes"),
    ],
)
def test_what_has_no_meaning_is_refused_by_check_and_run(
    options: Any, sections: Any, key: str, words: str, rows: Any, write_recipe: WriteRecipe, make_model: Any
) -> None:
    """An option that does nothing for a task would look as if it had been applied."""
    teacher = str(make_model("bert-mlm" if "task" in sections else "bert", seed=1))
    data = json.loads(json.dumps({**rows, **options}).replace("TEACHER", teacher))
    if "task" in sections:
        data = {key: value for key, value in data.items() if key not in ("labels", "transfer")}
    path = write_recipe(**sections, data=data, teacher={"name": "pretrained", "model": teacher})
    for work in (lambda: check(load_recipe(path)), lambda: run(path)):
        with pytest.raises(UserError) as caught:
            work()
        assert f"data.{key}: " in str(caught.value)
        assert words in str(caught.value)


@pytest.mark.parametrize(
    "option", [{"select": {"share": 0.5}}, {"augment": "tinybert"}, {"pseudo_labels": {"threshold": 0.9}}]
)
def test_private_rows_teach_nobody_but_their_teacher(option: Any, rows: Any, write_recipe: WriteRecipe) -> None:
    """A classifier of private labels, or copies of private texts, would reach the student past the budget."""
    from hf_distill.run.data_options import check_data_options

    inner = {"name": "finetuned", "model": "bert"}
    teacher = {"name": "noisy", "teacher": inner, "count": 3, "noise": 1.0, "budget": 30.0, "delta": 1e-3}
    recipe = load_recipe(write_recipe(data={**rows, **option}, teacher=teacher))
    with pytest.raises(UserError, match=f"data.{next(iter(option))}: .*private"):
        check_data_options(recipe)


def test_targets_in_columns_have_none_for_new_texts(rows: Any, write_recipe: WriteRecipe) -> None:
    """A given teacher would be asked for rows that nobody gave it."""
    from hf_distill.run.data_options import check_data_options

    recipe = load_recipe(
        write_recipe(
            data={**rows, "augment": "tinybert"},
            teacher={"name": "given", "columns": {"probabilities": "p"}, "labels": ["negative", "positive"]},
            objectives=KL_AND_LABELS,
        )
    )
    with pytest.raises(UserError, match=r"data.augment: the teacher reads columns"):
        check_data_options(recipe)
