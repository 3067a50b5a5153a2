"""Exports of a run: written, compared with PyTorch, run without it, reported; by a run and by the command."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from exported import alone, failing, mistakes_of
from runs import REPO, WriteRecipe, run
from sentence_models import describe

from hf_distill import load_recipe
from hf_distill.cli import main
from hf_distill.errors import UserError
from hf_distill.report.report import Report


def test_a_run_exports_checks_and_reports(write_recipe: WriteRecipe, tmp_path: Path, capsys: Any) -> None:
    """Figures of another model, or an export that a device cannot run, would be published with the student; a run that
    is repeated would export again, and a format that is added later would drop those that are there."""
    from transformers import pipeline

    out = tmp_path / "out"
    path = write_recipe(export={"formats": ["onnx"]})
    first = run(path, "report.latency=true", "data.max_length=8")
    torch, onnx = first.exports
    assert (torch.format, onnx.format, onnx.rows, onnx.agreement) == ("pytorch", "onnx", 32, 1.0)
    assert 0 < onnx.difference < 1e-5
    assert onnx.metrics == torch.metrics == pytest.approx(first.student.metrics)
    assert onnx.latency.single.batch_size == 1
    assert onnx.latency.threads == torch.latency.threads == onnx.edge.threads
    # Python with numpy, onnxruntime and tokenizers takes 50 MB, PyTorch with Transformers 400.
    assert 20e6 < onnx.edge.peak_memory < 250e6
    for name in ("report.html", "README.md"):
        assert "The student in other formats" in (out / name).read_text(encoding="utf-8")
    assert "onnx: written" in capsys.readouterr().out

    text = "a wonderful and very clever film with a dull scene ."
    (odds,) = alone(out / "onnx", text)
    model = pipeline("text-classification", str(out), top_k=None)
    cut, whole = (
        {one["label"]: one["score"] for one in model([text], truncation=True, max_length=most)[0]} for most in (8, 64)
    )
    assert odds == pytest.approx(cut, abs=1e-4)  # as it was evaluated, not up to its last position
    assert odds != pytest.approx(whole, abs=1e-4)
    assert "UTF-8" in failing(out / "onnx", text, "\udcff")
    (shutil.copytree(out / "onnx", tmp_path / "moved") / "tokenizer.json").unlink()
    assert "tokenizer.json is missing" in failing(tmp_path / "moved", text)
    assert str(REPO).encode() not in (out / "onnx" / "model.onnx").read_bytes()

    before = (out / "onnx" / "model.onnx").stat().st_mtime_ns
    assert main(["export", str(out), "--format", "onnx", "--format", "onnx-int8", "report.latency=false"]) == 0
    assert "found, not exported again" in capsys.readouterr().out
    assert (out / "onnx" / "model.onnx").stat().st_mtime_ns == before
    stored = json.loads((out / "report.json").read_text(encoding="utf-8"))["exports"]
    assert [one["format"] for one in stored] == ["pytorch", "onnx", "onnx-int8"]
    assert stored[0]["latency"] == json.loads(json.dumps(dataclasses.asdict(torch.latency)))
    assert stored[2]["bytes"] < stored[1]["bytes"]


def test_labels_of_an_adapter_go_with_it(write_recipe: WriteRecipe, make_model: Any, tmp_path: Path) -> None:
    """The base of an adapter has no labels: the script would print others, and probabilities of one label for those of
    several."""
    import numpy as np
    import onnxruntime
    from transformers import AutoTokenizer

    base, names = str(make_model("bert-bare", layers=2, seed=1)), ["comedy", "drama", "crime"]
    path = tmp_path / "data.jsonl"
    path.write_text(
        "\n".join(json.dumps({"text": text, "label": names[: place % 3]}) for place, text in enumerate(ROWS))
    )
    teacher = {"name": "pretrained", "model": str(make_model("bert", layers=2, seed=1, labels=names))}
    student = {"name": "lora", "model": base, "r": 2, "merge": False}
    data = {"path": {"train": str(path), "validation": str(path)}, "labels": names}
    run(write_recipe(data=data, teacher=teacher, student=student, export={"formats": ["onnx"]}))
    folder = tmp_path / "out" / "onnx"
    (odds,) = alone(folder, ROWS[0])
    inputs = dict(AutoTokenizer.from_pretrained(base)(ROWS[0], return_tensors="np"))
    (logits,) = onnxruntime.InferenceSession(folder / "model.onnx").run(["logits"], inputs)
    assert odds == pytest.approx(dict(zip(names, 1 / (1 + np.exp(-logits[0])), strict=True)), abs=1e-3)
    for words in ((), ("--pair", "alone")):
        command = [sys.executable, str(folder / "run.py"), *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert done.stderr.startswith("Runs an exported student")


def test_what_lies_in_the_place_of_an_export(make_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The export of another student would be replaced without a word, or files of others deleted with an older one."""
    from hf_distill.export import FinishedStudent, Format
    from hf_distill.export.options import ExportOptions
    from hf_distill.models.loading import Head
    from hf_distill.run.exporting.writing import weight_of, write

    class Plain(Format):
        name, content, files = "plain", "one", ("model.bin",)

        def refuses(self, auto_class: str, config: Any) -> None: ...

        def settings(self, options: Any) -> dict[str, Any]:
            return {"content": self.content}

        def write(self, student: Any, into: Path, options: Any) -> None:
            for file in self.files:
                (into / file).write_text(self.content)

        def open(self, directory: Path, threads: int | None = None) -> Any: ...

    def export(student: FinishedStudent) -> bool:
        return write(Plain(), student, tmp_path, ExportOptions())

    head = Head("AutoModelForSequenceClassification", {})
    mine, other = (FinishedStudent(make_model("bert", layers=1, seed=seed), head) for seed in (1, 2))
    folder = tmp_path / "plain"
    assert export(mine)
    assert not export(mine)
    (folder / "notes").mkdir()
    (folder / "notes" / "mine.txt").write_text("measured")
    assert weight_of(folder, (".json",)) == len("one")
    (folder / "link").symlink_to(tmp_path)
    (tmp_path / "theirs.txt").write_text("theirs")
    with pytest.raises(UserError, match=f"another student.*{mine.directory.name}, BertForSequence") as error:
        export(other)
    assert error.value.key == "formats"
    monkeypatch.setattr(Plain, "content", "two")
    assert export(mine)  # written anew, with other settings
    assert {one.name for one in tmp_path.iterdir()} == {"plain", "theirs.txt"}
    assert (folder / "model.bin").read_text() == "two"
    assert (folder / "notes" / "mine.txt").read_text() == "measured"
    assert (folder / "link").readlink() == tmp_path

    monkeypatch.setattr(Plain, "content", "three")
    monkeypatch.setattr(Plain, "files", ("model.bin", "notes.txt"))
    (folder / "notes.txt").write_text("measured too")
    with pytest.raises(UserError, match=r"notes\.txt was not written by this package"):
        export(mine)
    assert (folder / "model.bin").read_text() == "two"
    staging = tmp_path / "_export"
    assert not staging.exists()
    staging.mkdir()
    (staging / "thesis.tex").write_text("years")
    with pytest.raises(UserError, match="in the way"):
        export(mine)
    assert (staging / "thesis.tex").read_text() == "years"
    (staging / "thesis.tex").rename(staging / "_export.json")  # as a kill leaves it behind
    (folder / "notes.txt").unlink()
    assert export(mine)
    assert not staging.exists()

    (folder / "_export.json").unlink()
    with pytest.raises(UserError, match="is not an export of this package"):
        export(mine)


def test_speeds_of_two_measurements_are_not_mixed() -> None:
    """An export that was measured on a busy machine would look slower than one that was measured later."""
    from hf_distill.report.exports import Edge, Exported, WritingFigures
    from hf_distill.report.timing import Latency, Timing
    from hf_distill.run.exporting.command import merged

    def one(name: str, ms: float | None) -> Exported:
        timing = Timing(ms or 0.0, 0.0, 1, 1, 1)
        latency = None if ms is None else Latency(timing, timing, "cpu", "float32", 1)
        edge = None if ms is None else Edge(1.0, 1.0, 1, 1, 1)
        writing = WritingFigures(ms, 1.0, 0.0, 4, 24, 1)
        return Exported(name, name, "float32", 1, 1, latency=latency, edge=edge, writing=writing)

    before = one("pytorch", 4.0), one("onnx", 2.0)
    timed = merged(before, (one("pytorch", 8.0), one("onnx-int8", 3.0)))
    assert timed == (one("pytorch", 8.0), one("onnx", None), one("onnx-int8", 3.0))
    untimed = merged(before, (replace(one("pytorch", None), rows=2), one("onnx-int8", None)))
    assert [found.latency for found in untimed] == [*(found.latency for found in before), None]
    assert [found.writing.tokens_per_second for found in untimed if found.writing] == [4.0, 2.0, None]
    assert untimed[0].rows == 2


def test_only_the_student_of_the_run_is_exported_by_command(
    write_recipe: WriteRecipe,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    sentiment_csv: Any,
) -> None:
    """Metrics on other rows, or of texts that are cut elsewhere, would stand in the report beside those of the run; the
    run's own command would take its exports out of the report again."""
    run(write_recipe())
    out, data = tmp_path / "out", Path(sentiment_csv.validation)
    assert main(["export", str(out), "--format", "onnx", "data.max_length=8"]) == 2
    assert "data.max_length=8" in capsys.readouterr().err
    other, moved = tmp_path / "other.csv", tmp_path / "moved.csv"
    other.write_text("".join(data.read_text().splitlines(keepends=True)[:9]))
    moved.write_text(data.read_text())
    assert main(["export", str(out), "--format", "onnx", f"data.path.validation={other}"]) == 2
    assert "eval rows are not those of the run" in capsys.readouterr().err
    assert json.loads((out / "report.json").read_text(encoding="utf-8"))["exports"] == []
    assert "was changed" not in caplog.text
    with (out / "recipe.yaml").open("a") as recipe:
        recipe.write("# mine\n")
    assert main(["export", str(out), "--format", "onnx", f"data.path.validation={moved}"]) == 0
    assert "recipe.yaml was changed since its run wrote it" in caplog.text
    assert [one.format for one in run(write_recipe(), may_take_over=True).exports] == ["pytorch", "onnx"]
    assert main(["export", str(out), "--format", "onnx", "--into", str(moved)]) == 2
    assert "there is a file in its place" in capsys.readouterr().err


ROWS = [
    f"the film is {word} and {other} ." for word in ("great", "dull", "moving", "stale") for other in ("fresh", "bad")
]


def data_of(task: str) -> list[dict[str, Any]]:
    """Return rows of a task, of different lengths."""
    texts = [text + " very" * place for place, text in enumerate(ROWS)]
    if task == "token-classification":
        return [{"tokens": text.split(), "tags": [place % 2] * len(text.split())} for place, text in enumerate(texts)]
    if task == "question-answering":
        answers = [{"text": ["film"], "answer_start": [4]} for _ in texts]
        return [
            {"question": "is it ?", "context": text, "answers": one} for text, one in zip(texts, answers, strict=True)
        ]
    if task == "sentence-similarity":
        return [{"text": text, "text_pair": "a plot", "label": place / 8} for place, text in enumerate(texts)]
    if task == "fill-mask":
        return [{"text": text} for text in texts]
    label: Any = {"number": 0.5}
    if task == "several":
        return [
            {"text": text, "label": [["dull"], ["dull", "great"], []][place % 3]} for place, text in enumerate(texts)
        ]
    return [{"text": text, "label": label.get(task, place % 2)} for place, text in enumerate(texts)]


CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "token-classification": ("token-classification", "bert-tokens", {}),
    "question-answering": ("question-answering", "bert-qa", {}),
    "sentence-similarity": ("sentence-similarity", "bert-bare", {"objectives": ["sentence_embedding"]}),
    "fill-mask": ("fill-mask", "bert-mlm", {}),
    "number": ("text-classification", "bert", {"objectives": ["logits_mse"], "labels": ["score"]}),
    "several": ("text-classification", "bert", {"labels": ["dull", "great"]}),
    "distilbert": ("text-classification", "distilbert", {}),
    "roberta": ("text-classification", "roberta", {}),
    "gpt2": ("text-classification", "gpt2", {}),
    "adapters": ("text-classification", "bert", {"student": {"name": "lora", "r": 2, "merge": False}}),
}


def test_answers_in_long_contexts_are_those_of_the_report(
    write_recipe: WriteRecipe, make_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The script would read the first window of a context alone, or take longer answers, or never "no answer", and be
    worse than the figures beside it."""
    from hf_distill.metrics.answers import Questions

    rows = [{**one, "id": str(place)} for place, one in enumerate(data_of("question-answering"))]
    for place, row in enumerate(rows):
        row["context"] += " the plot of a film is very fresh and moving but it is stale" * (place % 4)
        if place % 2:
            row["answers"] = {"text": [], "answer_start": []}
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    predicted: dict[str, str] = {}
    right = Questions.predictions

    def predictions(self: Questions, logits: Any) -> list[str]:
        predicted.update(zip(self.contexts, found := right(self, logits), strict=True))
        return found

    monkeypatch.setattr(Questions, "predictions", predictions)
    model = {"name": "pretrained", "model": str(make_model("bert-qa", layers=2, seed=1))}
    report = run(
        write_recipe(
            task={"name": "question-answering", "stride": 4, "longest_answer": 3},
            data={"path": {"train": str(path), "validation": str(path)}, "max_length": 24},
            teacher=model,
            student=model,
            report={"latency": True},
            export={"formats": ["onnx"]},
        )
    )
    assert report.exports[1].edge is not None
    folder = tmp_path / "out" / "onnx"
    some = [row for row in rows if len(row["context"]) > 150][:3] + rows[:2]
    found = {row["context"]: alone(folder, "--pair", f" {row['question']}", row["context"])[0] for row in some}
    assert found == {context: predicted[context] for context in found}
    line = failing(folder, "--pair", "is it " * 20, "a film")
    assert "question is too long" in line
    assert "--pair" in failing(folder, "a film")


def test_vectors_of_long_texts_are_those_of_the_report(
    write_recipe: WriteRecipe, make_model: Any, tmp_path: Path
) -> None:
    """A sentence encoder is cut where its files say, long before its last position: longer inputs give other vectors
    than those that were evaluated."""
    model = shutil.copytree(make_model("bert-bare", layers=2, seed=1), tmp_path / "model")
    describe(model, "m.Transformer", "m.Pooling", sentence_bert_config={"max_seq_length": 8})
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, data_of("sentence-similarity"))))
    run(
        write_recipe(
            task="sentence-similarity",
            data={"path": {"train": str(path), "validation": str(path)}},
            teacher={"name": "pretrained", "model": str(model)},
            student={"name": "pretrained", "model": str(model)},
            objectives=["sentence_embedding"],
            export={"formats": ["onnx"]},
        )
    )
    long, cut = alone(tmp_path / "out" / "onnx", "the film is great and fresh but dull", "the film is great and fresh")
    assert long == pytest.approx(cut, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_every_task_exports(case: str, write_recipe: WriteRecipe, make_model: Any, tmp_path: Path) -> None:
    """A head whose outputs are read in another order, a mask that is ignored, or adapters that are left out give a
    student that runs and is wrong: each is compared with PyTorch row by row, in all formats, also without PyTorch."""
    task, kind, settings = CASES[case]
    labels = {"labels": settings.pop("labels")} if "labels" in settings else {}
    model = str(make_model(kind, layers=2, seed=1, **labels))
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, data_of(case if case in ("number", "several") else task))))
    data: dict[str, Any] = {"path": {"train": str(path), "validation": str(path)}}
    if "classification" in task and not labels:
        data["labels"] = ["negative", "positive"]
    student = {"name": "pretrained", "model": model, **settings.pop("student", {})}
    formats = ["onnx", "onnx-int8", "onnx-int8-static"]
    report = run(
        write_recipe(
            task={"name": task, "stride": 8} if task == "question-answering" else task,
            data=data,
            teacher={"name": "pretrained", "model": model},
            student=student,
            report={"latency": True},
            export={"formats": formats, "calibration": {"rows": 4}},
            **settings,
        )
    )
    torch, onnx, *smaller = report.exports
    assert onnx.difference < 1e-4
    assert onnx.metrics == pytest.approx(torch.metrics, rel=1e-4, nan_ok=True)
    assert torch.metrics == pytest.approx(report.student.metrics, rel=1e-3, nan_ok=True)
    for one in smaller:
        assert onnx.difference < one.difference < 4  # ranges of four rows, of random weights
        assert one.edge is not None
        assert one.edge.texts == len(ROWS)


def test_what_cannot_be_exported_is_said_before_training(
    write_recipe: WriteRecipe, make_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hours of training would come before the line that says that a package is missing, or the format does not fit."""
    path = write_recipe(export={"formats": ["onnx"]})
    with pytest.raises(UserError, match=r"export\.formats.*unknown format 'onx'.*'onnx'"):
        load_recipe(path, ["export.formats=[onx]"])
    with pytest.raises(UserError, match=r"export\.opset.*18"):
        load_recipe(path, ["export.opset=11"])
    monkeypatch.setattr("hf_distill.run.export_checks.is_here", lambda package: package != "onnxscript")
    line = mistakes_of(path)
    assert "export.formats[0]" in line
    assert "pip install 'hf-distill[onnx]'" in line
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_an_export_that_differs_is_an_error(
    write_recipe: WriteRecipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A wrong graph would be published with a figure beside it that nobody reads; chance on a few rows would be called
    a loss, or a loss chance."""
    from hf_distill.export import FORMATS, Onnx, Session
    from hf_distill.report.export_text import loss, notes
    from hf_distill.run.exporting.stage import warn_of_losses

    class Shifted(Session):
        inputs = ("input_ids", "attention_mask", "token_type_ids")
        by = 0.5

        def __call__(self, batch: Any) -> Any:
            import torch
            from transformers import AutoModelForSequenceClassification

            model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
            with torch.no_grad():
                logits = model(**{name: torch.from_numpy(value) for name, value in batch.items()}).logits.numpy()
            # As of a graph that reads padding: a row alone gives something else.
            return {"logits": logits + self.by + 0.5 * (len(logits) == 1)}

    class Wrong(Onnx):
        def write(self, student: Any, into: Path, options: Any) -> None:
            (into / "model.onnx").write_bytes(b"graph")

        def open(self, directory: Path, threads: int | None = None) -> Session:
            return Shifted()

    monkeypatch.setitem(FORMATS, "onnx", Wrong)
    path = write_recipe(export={"formats": ["onnx"]})
    with pytest.raises(UserError, match=r"other results than PyTorch: an output differs by 0\.5"):
        run(path)
    monkeypatch.setattr(Shifted, "by", 0.0)
    with pytest.raises(UserError, match=r"export.*padded"):
        run(path)
    assert Report.load(tmp_path / "out").exports == ()  # hours of training are reported, and nothing wrong is announced

    monkeypatch.setattr(Wrong, "exact", False)
    right = Shifted.__call__
    monkeypatch.setattr(Shifted, "__call__", lambda self, batch: {"logits": -right(self, batch)["logits"]})
    caplog.clear()
    found = run(path)
    plain, other = found.exports
    assert other.agreement < 0.5  # of the two classes it predicts the other one
    less = plain.metrics["accuracy"] - other.metrics["accuracy"]
    paired = math.sqrt((1 - other.agreement - less**2) / other.rows)  # each row counts -1, 0 or 1
    assert other.error == pytest.approx(paired, rel=0.3)
    for error, told in ((0.01, "more than"), (0.03, "within")):
        one = replace(other, error=error, metrics={"accuracy": plain.metrics["accuracy"] - 0.05})
        made = replace(found, exports=(plain, one))
        assert f"{told} the sampling error" in loss(made, one)
        assert loss(made, one) in notes(made)
    warn_of_losses(made)
    assert "5.0 points of accuracy" in caplog.text
    assert "± 5.9 points, 95 % interval): within" in caplog.text


def test_the_root_logger_is_left_as_it_was() -> None:
    """onnxruntime.quantization sets it up when it is imported: every later message of a run came twice."""
    import logging

    code = (
        "import logging\nfrom hf_distill.export.graph import root_logger_kept\n"
        "with root_logger_kept():\n    import onnxruntime.quantization.matmul_nbits_quantizer\n"
        "print(logging.getLogger().handlers, logging.getLogger().level)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"[] {logging.WARNING}"
