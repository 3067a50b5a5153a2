"""Several parties: each publishes its teacher's targets for public texts, and a server learns from all of them."""

from __future__ import annotations

import csv
import importlib.util
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from prepared import refused
from runs import REPO, WriteRecipe, run

from hf_distill import load_recipe
from hf_distill.cache.published import read, write
from hf_distill.cli import main
from hf_distill.files.records import read_record, write_record
from hf_distill.run.dry_run import check
from hf_distill.run.publishing import publish

RECIPES = REPO / "recipes" / "federated"
PUBLIC = ["a great film", "the dull plot", "it was very moving", "a boring cast", "quite a story", "a great film"]
# As many words as any party, none of which is in a public text.
PRIVATE = {"one": "wonderful secretive grandmother", "two": "dreadful classified uncle", "three": "superb hidden aunt"}


@dataclass(frozen=True)
class Party:
    """A party with its own rows.

    Attributes:
        recipe: Its recipe.
        published: Directory of its targets.
        rows: Number of its labelled rows.
    """

    recipe: Path
    published: Path
    rows: int


def write_csv(path: Path, head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([head, *rows])
    return str(path)


@pytest.fixture
def party(write_recipe: WriteRecipe, make_model: Any, tmp_path: Path) -> Callable[..., Party]:
    """Write the recipe of a party; keyword arguments replace sections."""
    public = write_csv(tmp_path / "public.csv", ("sentence",), [(text,) for text in PUBLIC])

    def made(
        name: str = "one",
        rows: int = 16,
        models: tuple[str, ...] = ("bert-bare", "roberta-bare", "bert-bare"),
        **sections: Any,
    ) -> Party:
        text, labels = PRIVATE[name], ("positive", "negative")
        private = [(f"{text} {number}", labels[number % 2]) for number in range(rows)]
        home = tmp_path / name
        home.mkdir(exist_ok=True)
        data = {
            "path": {
                "train": write_csv(home / "private.csv", ("sentence", "label"), private),
                "validation": write_csv(home / "validation.csv", ("sentence", "label"), private[:4]),
            },
            "columns": {"text": "sentence"},
            "labels": ["negative", "positive"],
            "transfer": {"path": public},
        }
        at = list(PRIVATE).index(name)
        kind, seed = models[at], at + 1
        teacher = {
            "name": "finetuned",
            "model": str(make_model(kind, layers=2, seed=seed)),
            "training": {"max_steps": 4},
        }
        recipe = write_recipe(
            **{
                "data": data,
                "teacher": {"name": "cached", "path": str(home / "published"), "teacher": teacher},
                "student": {"name": "copy_layers", "layers": 1},
                "training": {"output_dir": str(home / "out")},
                **sections,
            }
        )
        return Party(recipe.rename(home / "recipe.yaml"), home / "published", rows)

    return made


def test_only_targets_of_public_texts_leave_a_party(
    party: Callable[..., Party], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A private text, a public one, a path or a weight could be in the files: they are read byte by byte."""
    own = party()
    assert main(["cache", str(own.recipe), "--targets-only"]) == 0
    assert (
        "targets of 5 public texts, without the texts; size of this party: 16 labelled rows" in capsys.readouterr().out
    )
    files = {file.name: file.read_bytes() for file in own.published.rglob("*") if file.is_file()}
    record = json.loads(files["published.json"])
    assert {*files} - {".lock", "_lock"} <= {
        "published.json",
        "README.md",
        record["file"],
        *(n for n in files if "lock" in n),
    }
    assert record["size"] == 16
    table = pq.read_table(own.published / record["file"])
    assert table.column_names == ["example", "logits"]
    raw = b"\n".join([*files.values(), *table.column("example").to_pylist()]).lower()
    words = {word for text in (*PUBLIC, *PRIVATE.values()) for word in text.split() if len(word) > 3}
    assert len(words) > 12
    for word in (*words - {"film", "story"}, str(tmp_path), "out", "bert", "finetuned", "private.csv"):
        assert word.encode() not in raw.replace(b"without", b""), word
    assert main(["cache", str(own.recipe), "--targets-only", "--without-size"]) == 0
    assert read(own.published).size is None
    assert len(list(own.published.glob("*.parquet"))) == 1


def test_the_targets_are_the_private_teacher_s(party: Callable[..., Party], tmp_path: Path) -> None:
    """Logits of another text, another order of classes, or an untrained teacher would teach nonsense."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    own = party(rows=8)
    found = publish(load_recipe(own.recipe))
    assert (found.rows, found.size) == (5, 8)
    folder = next((tmp_path / "one" / "out" / "_teacher").glob("*/config.json")).parent
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    held = read(own.published)
    assert held.labels == ("negative", "positive")
    from datasets import Dataset

    with torch.no_grad():
        live = model(**tokenizer(PUBLIC, padding=True, return_tensors="pt")).logits.numpy()
    columns = [model.config.label2id[name] for name in held.labels]
    assert np.allclose(held.of(Dataset.from_dict({"text": PUBLIC}), "train", ["text"]), live[:, columns], atol=1e-5)


def server(
    write_recipe: WriteRecipe, make_model: Any, tmp_path: Path, teacher: dict[str, Any], **sections: Any
) -> Path:
    train = write_csv(tmp_path / "train.csv", ("sentence",), [(text,) for text in PUBLIC[:4]])
    labelled = [(text, ("positive", "negative")[number % 2]) for number, text in enumerate(PUBLIC[2:5])]
    return write_recipe(
        **{
            "data": {
                "path": {
                    "train": train,
                    "validation": write_csv(tmp_path / "eval.csv", ("sentence", "label"), labelled),
                },
                "columns": {"text": "sentence"},
            },
            "teacher": teacher,
            "student": {"name": "pretrained", "model": str(make_model("bert-bare", layers=1))},
            "objectives": [{"name": "kl", "temperature": 2.0}],
            "training": {"output_dir": str(tmp_path / "server"), "per_device_train_batch_size": 2},
            **sections,
        }
    )


def test_a_student_of_published_targets(
    party: Callable[..., Party], write_recipe: WriteRecipe, make_model: Any, tmp_path: Path
) -> None:
    """The student of one party's targets is that of its teacher: the same run with the model itself proves it."""
    own = party()
    publish(load_recipe(own.recipe))
    folder = next((tmp_path / "one" / "out" / "_teacher").glob("*/config.json")).parent
    path = server(write_recipe, make_model, tmp_path, {"name": "published", "path": str(own.published)})
    assert "published targets of 5 texts, of a teacher that learned from 16 labelled rows" in check(load_recipe(path))
    remote = run(path)
    live = run(
        server(
            write_recipe,
            make_model,
            tmp_path,
            {"name": "pretrained", "model": str(folder)},
            training={"output_dir": str(tmp_path / "live"), "per_device_train_batch_size": 2},
        )
    )
    losses = [[one["loss"] for one in found.history["student"] if "loss" in one] for found in (remote, live)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert remote.teacher.metrics == live.teacher.metrics
    assert remote.student.metrics == pytest.approx(live.student.metrics)


def test_three_parties_teach_as_their_models_would(
    party: Callable[..., Party], write_recipe: WriteRecipe, make_model: Any, tmp_path: Path
) -> None:
    """The student of three parties must be that of the ensemble of their models, weighted by size, at any
    temperature."""
    sizes = {"one": 4, "two": 8, "three": 20}
    parties = [party(name, rows, models=("bert-bare",) * 3) for name, rows in sizes.items()]
    for one in parties:
        publish(load_recipe(one.recipe))
    folders = [next((tmp_path / name / "out" / "_teacher").glob("*/config.json")).parent for name in sizes]
    settings: dict[str, Any] = {
        "objectives": [{"name": "kl", "temperature": 2.0}, {"name": "soft_cross_entropy", "temperature": 3.0}],
        "training": {"output_dir": str(tmp_path / "server"), "per_device_train_batch_size": 2, "num_train_epochs": 2},
    }

    def learned(teachers: list[dict[str, Any]], weights: Any, name: str) -> Any:
        training = {**settings["training"], "output_dir": str(tmp_path / name)}
        teacher = {"name": "ensemble", "teachers": teachers, "weights": weights}
        return run(server(write_recipe, make_model, tmp_path, teacher, **{**settings, "training": training}))

    remote = learned([{"name": "published", "path": str(one.published)} for one in parties], "size", "remote")
    live = learned([{"name": "pretrained", "model": str(folder)} for folder in folders], [4, 8, 20], "live")
    losses = [[one["loss"] for one in found.history["student"] if "loss" in one] for found in (remote, live)]
    assert len(losses[0]) == 4
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    evaluated = [
        [one["eval_loss"] for one in found.history["student"] if "eval_loss" in one] for found in (remote, live)
    ]
    assert evaluated[0] == pytest.approx(evaluated[1], rel=1e-5)
    assert remote.teacher.metrics == pytest.approx(live.teacher.metrics)
    assert remote.agreement == live.agreement
    assert remote.settings["teacher"] == live.settings["teacher"]
    assert remote.settings["teacher"]["weights"] == "teacher 1 0.125, teacher 2 0.250, teacher 3 0.625"


def test_the_recipes_of_several_rounds_run(make_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FedMD as run.sh loops it: in its second round a party could start from nothing, or publish the first anew."""
    chance = random.Random(0)
    words = ("film", "plot", "cast", "story", "scene", "very", "rather", "a", "the")

    def rows(count: int) -> list[tuple[str, ...]]:
        labels = ("positive", "negative")
        return [
            (" ".join((("great", "dull")[at % 2], *chance.choices(words, k=5), str(at))), labels[at % 2])
            for at in range(count)
        ]

    monkeypatch.chdir(tmp_path)
    spec = importlib.util.spec_from_file_location("split", RECIPES / "split.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    files = [
        Path(write_csv(tmp_path / f"{name}.csv", ("sentence", "label"), rows(count)))
        for name, count in (("train", 140), ("validation", 8))
    ]
    home = Path("outputs/federated")
    module.split(*files, home, public=16, scale=0.04)
    small = ("training.bf16=false", "training.disable_tqdm=true", "training.max_steps=2", "report.latency=false")
    tiny = str(make_model("bert-bare", layers=2))
    copied = ("student.layers=1", f"student.model={tiny}", f"data.path.validation={files[1]}")

    def published(number: int) -> list[str]:
        return [f"teacher.teachers.{at}.path={home}/{name}/round{number}" for at, name in enumerate(PRIVATE)]

    for number in (1, 2):
        for name in PRIVATE:
            start = tiny if number == 1 else f"{home}/{name}/digest1"
            own = (f"data.path={home}/{name}/private.csv", f"teacher.path={home}/{name}/round{number}")
            first = (f"teacher.teacher.model={start}", "teacher.teacher.training.max_steps=4")
            place = f"training.output_dir={home}/{name}/out"
            publish(load_recipe(RECIPES / "client.yaml", [*own, *first, place, *small, *copied[:2]]))
        if number == 1:
            for name in PRIVATE:
                place = f"training.output_dir={home}/{name}/digest1"
                run(RECIPES / "digest.yaml", *published(1), f"student.model={tiny}", place, *small)
    report = run(RECIPES / "server.yaml", *published(2), *copied, *small)
    assert report.teacher.metrics["accuracy"] >= 0
    assert report.settings["teacher"]["weights"] == "teacher 1 0.143, teacher 2 0.286, teacher 3 0.571"
    for name in PRIVATE:
        rounds = [read(home / name / f"round{number}") for number in (1, 2)]
        assert (rounds[0].known == rounds[1].known).all()
        assert not np.allclose(rounds[0].logits, rounds[1].logits)
        assert rounds[0].teacher != rounds[1].teacher
    assert [read(home / name / "round1").size for name in PRIVATE] == [9, 18, 36]


def test_what_is_refused(
    party: Callable[..., Party],
    write_recipe: WriteRecipe,
    make_model: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each would otherwise publish private rows, or train on targets of something else."""
    own = party()
    content = json.loads(own.recipe.read_text())
    del content["data"]["transfer"]
    own.recipe.write_text(json.dumps(content))
    assert main(["cache", str(own.recipe), "--targets-only"]) == 2
    assert "data.transfer: every row of train has a label" in capsys.readouterr().err
    assert not own.published.exists()
    for options in (["--check"], []):
        assert main(["cache", str(own.recipe), "--targets-only", *options, "teacher.path=null"]) == 2
        assert "teacher" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([str(own.recipe), "--targets-only"])
    with pytest.raises(SystemExit):
        main(["cache", str(own.recipe), "--without-size"])
    capsys.readouterr()

    other = tmp_path / "other"
    teacher = {"name": "published", "path": str(other)}

    def told(work: Callable[..., Any] = run, **sections: Any) -> str:
        path = server(write_recipe, make_model, tmp_path, teacher, **sections)
        return refused(lambda: work(load_recipe(path)) if work is check else work(path))[1]

    assert f"teacher: there are no published targets in {other}" in told().replace("teacher.path", "teacher")
    hashes = np.arange(20, dtype=np.uint64).reshape(-1, 2)
    settings: dict[str, Any] = {"kind": "classes", "size": 3, "teacher": "x"}
    write(other, hashes, np.zeros((10, 2), np.float32), labels=("negative", "positive"), **settings)
    for work in (check, run):
        line = told(work)
        assert "teacher.path: 4 of 4 rows of the train split have no targets in" in line
        assert "the first is row 0" in line
    write(other, hashes, np.zeros((10, 2), np.float32), labels=("negative", "neutral"), **settings)
    assert "negative, neutral" in told()
    record = read_record(other / "published.json")
    assert record is not None
    write_record(other / "published.json", {**record, "format": 0})
    assert "of format 0, and this version reads format 1" in told()
    write_record(other / "published.json", {**record, "sha256": "0"})
    assert "damaged (a file was changed since it was written)" in told()
    (other / "published.json").write_text("{")
    assert "damaged" in told()
    write(other, hashes, np.zeros((10, 2), np.float32), labels=("negative", "neutral"), **settings)
    own = party("two")
    publish(load_recipe(own.recipe), with_size=False)
    entries = [{"name": "published", "path": str(own.published)}, {"name": "published", "path": str(other)}]
    teacher = {"name": "ensemble", "teachers": entries}
    for work in (check, run):
        line = told(work)
        assert "teacher.teachers[1].path: label names differ" in line
        assert f"the party of {other} has [negative, neutral]" in line
    write(other, hashes, np.zeros((10, 2), np.float32), labels=("positive", "negative"), **settings)
    for work in (check, run):
        assert "teacher.teachers[1].path: 4 of 4 rows of the train split have no targets in" in told(work)
    teacher["weights"] = "size"
    assert f"teacher.weights: size: the party of {own.published} does not tell" in told()
    teacher["weights"] = "validation"
    assert "only models can be asked that" in told()
    entries[1] = {"name": "pretrained", "model": "x"}
    assert "found published" in told()
    (other / "notes.txt").write_text("x")
    assert refused(lambda: write(other, hashes, np.zeros((10, 2)), labels=None, **settings))[0] == "path"
