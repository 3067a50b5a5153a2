"""Exports of a run: written, compared with PyTorch, run without it, reported; by a run and by the command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from runs import WriteRecipe, run

from hf_distill import load_recipe
from hf_distill.cli import main
from hf_distill.errors import UserError
from hf_distill.report.report import Report
from hf_distill.run.dry_run import check

# A device without PyTorch: a program that imports it fails there.
WITHOUT = """
import runpy, sys
class Absent:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "hf_distill", "onnx"):
            raise ImportError(name)
sys.meta_path.insert(0, Absent)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def alone(folder: Path, *words: str) -> list[Any]:
    """Return what the script in an exported folder prints where there is no PyTorch."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-I", "-c", WITHOUT, str(folder / "run.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_run_exports_checks_and_reports(write_recipe: WriteRecipe, tmp_path: Path, capsys: Any) -> None:
    """Figures of another model, or an export that a device cannot run, would be published with the student; a run that
    is repeated would export again, and a format that is added later would drop those that are there."""
    from transformers import pipeline

    out = tmp_path / "out"
    path = write_recipe(export={"formats": ["onnx"]})
    first = run(path, "report.latency=true")
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
    scored = pipeline("text-classification", str(out), top_k=None)([text])[0]
    wanted = {one["label"]: one["score"] for one in scored}
    assert odds == pytest.approx(wanted, abs=1e-4)
    assert os.sep + "wt" + os.sep not in (out / "onnx" / "model.onnx").read_bytes().decode("latin-1")

    before = (out / "onnx" / "model.onnx").stat().st_mtime_ns
    assert main(["export", str(out), "--format", "onnx", "--format", "onnx-int8", "report.latency=false"]) == 0
    assert "found, not exported again" in capsys.readouterr().out
    assert (out / "onnx" / "model.onnx").stat().st_mtime_ns == before
    stored = json.loads((out / "report.json").read_text(encoding="utf-8"))["exports"]
    assert [one["format"] for one in stored] == ["pytorch", "onnx", "onnx-int8"]
    assert stored[2]["bytes"] < stored[1]["bytes"]


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
    label: Any = {"several": [0], "number": 0.5}
    return [{"text": text, "label": label.get(task, place % 2)} for place, text in enumerate(texts)]


CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "token-classification": ("token-classification", "bert-tokens", {}),
    "question-answering": ("question-answering", "bert-qa", {}),
    "sentence-similarity": ("sentence-similarity", "bert-bare", {"objectives": ["sentence_embedding"]}),
    "fill-mask": ("fill-mask", "bert-mlm", {}),
    "number": ("text-classification", "bert", {"objectives": ["logits_mse"], "labels": ["score"]}),
    "distilbert": ("text-classification", "distilbert", {}),
    "roberta": ("text-classification", "roberta", {}),
    "gpt2": ("text-classification", "gpt2", {}),
    "adapters": ("text-classification", "bert", {"student": {"name": "lora", "r": 2, "merge": False}}),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_every_task_exports(case: str, write_recipe: WriteRecipe, make_model: Any, tmp_path: Path) -> None:
    """A head whose outputs are read in another order, a mask that is ignored, or adapters that are left out give a
    student that runs and is wrong: each is compared with PyTorch row by row, in all formats, also without PyTorch."""
    task, kind, settings = CASES[case]
    labels = {"labels": settings.pop("labels")} if "labels" in settings else {}
    model = str(make_model(kind, layers=2, seed=1, **labels))
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, data_of("number" if case == "number" else task))))
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


def mistakes_of(path: Path, *overrides: str) -> str:
    """Return the lines of a mistake, the same from --check and a run."""
    found = []
    for how in (lambda recipe: check(recipe), lambda recipe: __import__("hf_distill").distill(recipe)):
        with pytest.raises(UserError) as error:
            how(load_recipe(path, overrides))
        found.append(str(error.value))
    assert found[0] == found[1]
    return found[0]


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
    write_recipe: WriteRecipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A wrong graph would be published with a figure beside it that nobody reads."""
    from hf_distill.export import FORMATS, Onnx, Session

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
