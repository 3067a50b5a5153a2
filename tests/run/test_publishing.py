"""Several parties: each publishes its teacher's targets for public texts, and a server learns from all of them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from prepared import refused
from runs import WriteRecipe, run

from hf_distill import load_recipe
from hf_distill.cache.published import read, write
from hf_distill.cli import main
from hf_distill.files.records import read_record, write_record
from hf_distill.run.dry_run import check
from hf_distill.run.publishing import publish

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

    def made(name: str = "one", rows: int = 16, **sections: Any) -> Party:
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
        kind = {"one": "bert-bare", "two": "roberta-bare", "three": "bert-bare"}[name]
        seed = {"one": 1, "two": 2, "three": 3}[name]
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
    (other / "notes.txt").write_text("x")
    assert refused(lambda: write(other, hashes, np.zeros((10, 2)), labels=None, **settings))[0] == "path"
