"""`teacher: {name: cached}` in a recipe, and `hf-distill cache`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from cached_runs import cached, count_calls
from prepared import refused
from runs import KL_AND_LABELS, WriteRecipe, run, same, weights

from hf_distill.cli import main
from hf_distill.errors import UserError


def test_a_run_from_a_cache_is_the_run(
    write_recipe: WriteRecipe, make_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same recipe, same seed, live and cached, with a baseline: the report and the student are to agree; a second
    student asks the teacher nothing."""
    seen = count_calls(monkeypatch)
    teacher = make_model("bert", layers=4, seed=1)
    reports = {}
    for name, entry in {
        "live": {"name": "pretrained", "model": str(teacher)},
        "cached": cached(teacher, path=str(tmp_path / "cache")),
    }.items():
        path = write_recipe(
            teacher=entry,
            report={"baseline": True, "latency": False},
            # Adam turns the rounding of a gradient that is 0 but for rounding into a whole step.
            training={"output_dir": str(tmp_path / name), "num_train_epochs": 2, "optim": "sgd", "learning_rate": 0.05},
        )
        reports[name] = run(path)
    live, found = reports["live"], reports["cached"]
    assert found.student.metrics == live.student.metrics
    assert found.baseline.metrics == live.baseline.metrics
    assert found.agreement == live.agreement
    one, other = weights(tmp_path / "live"), weights(tmp_path / "cached")
    assert one.keys() == other.keys()
    assert max(float((one[name] - other[name]).abs().max()) for name in one) < 1e-5
    assert "cached: 96 examples" in str(found.settings["teacher's answers"])
    assert sum(seen) == 96
    path = write_recipe(
        teacher=cached(teacher, path=str(tmp_path / "cache")),
        student={"name": "copy_layers", "layers": 1},
        training={"output_dir": str(tmp_path / "second")},
    )
    run(path)
    assert sum(seen) == 96


def rows_of(kind: str) -> list[dict[str, Any]]:
    """Return five examples of a task."""
    words = ["great", "dull", "moving", "stale", "bad"]
    texts = [f"the film is {word} ." for word in words]
    return {
        "text-classification": [{"text": text, "label": place % 2} for place, text in enumerate(texts)],
        "token-classification": [{"tokens": text.split(), "tags": [0, 1, 0, n % 2, 0]} for n, text in enumerate(texts)],
        "question-answering": [
            {"question": "is it ?", "context": text, "answers": {"text": [word], "answer_start": [12]}}
            for text, word in zip(texts, words, strict=True)
        ],
        "sentence-similarity": [
            {"text": text, "text_pair": f"a {word} plot", "label": place / 4}
            for place, (text, word) in enumerate(zip(texts, words, strict=True))
        ],
    }[kind]


HEADS = {
    "text-classification": "bert",
    "token-classification": "bert-tokens",
    "question-answering": "bert-qa",
    "sentence-similarity": "bert-bare",
}


@pytest.mark.parametrize("kind", HEADS)
def test_a_whole_run_asks_once(kind: str, write_recipe: WriteRecipe, make_model: Any, tmp_path: Path) -> None:
    """Three epochs with an evaluation each, two students, and a report on the teacher itself: as many forward passes as
    there are examples, and the figures that the teacher has when it is asked again."""
    import transformers

    model = make_model(HEADS[kind], layers=4, seed=1)
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, rows_of(kind))))
    data: dict[str, Any] = {"path": {"train": str(path), "validation": str(path)}}
    if "classification" in kind:
        data["labels"] = ["negative", "positive"]
    report = {"latency": False, "seeds": 2}
    objectives = [{"name": "logits_mse"}]
    asked: list[int] = []

    def note(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        answers = {"logits", "start_logits", "sentence_embedding"} & set(output if isinstance(output, dict) else ())
        if isinstance(module, transformers.PreTrainedModel) and answers and module.config.num_hidden_layers == 4:
            asked.append(len(kwargs["input_ids"]))

    reports = []
    for name, entry in {"live": {"name": "pretrained", "model": str(model)}, "cached": cached(model)}.items():
        training = {"output_dir": str(tmp_path / name), "num_train_epochs": 3}
        asked.clear()
        hook = torch.nn.modules.module.register_module_forward_hook(note, with_kwargs=True)
        task = {"name": kind, "stride": 8} if kind == "question-answering" else kind
        settings = {"task": task, "data": data, "report": report, "objectives": objectives}
        reports.append(run(write_recipe(teacher=entry, training=training, **settings)))
        hook.remove()
        assert sum(asked) > 30 if name == "live" else sum(asked) == 5
    live, found = reports
    assert found.teacher.metrics == pytest.approx(live.teacher.metrics, abs=1e-6)
    assert found.calibration.keys() == live.calibration.keys()
    assert found.confusion == live.confusion


def test_hf_distill_cache(
    write_recipe: WriteRecipe, make_model: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command alone, then the run: where the cache is left out each recipe finds it again, and asks nothing."""
    seen = count_calls(monkeypatch)
    path = write_recipe(teacher=cached(make_model("bert", layers=4, seed=1)))
    assert main(["cache", str(path)]) == 0
    out = capsys.readouterr().out
    assert "96 examples: about 5.4 kB" in out
    assert "hf_distill-targets" in out
    assert sum(seen) == 96
    assert "shard 1 of 1\n" in out
    assert "Found" not in out
    assert main(["cache", str(path)]) == 0
    again = capsys.readouterr().out
    assert "Found: 96 examples: about 5.4 kB, in " in again
    assert again.endswith(": all targets were stored before, the teacher was not run\n")
    assert main([str(path)]) == 0
    assert "Found: 96 examples" in capsys.readouterr().out
    assert sum(seen) == 96
    assert main(["cache", str(path), "teacher={name: pretrained, model: x}"]) == 2
    assert "the targets of this teacher are not stored" in capsys.readouterr().err


def test_a_language_model(write_recipe: WriteRecipe, make_model: Any, tmp_path: Path) -> None:
    """Sparse, in a run: perplexity and agreement come out, and a killed cache is told from a whole one."""
    text = tmp_path / "text.csv"
    lines = ["the film is great .", "a dull plot , and a stale story !", "very moving with the cast of this scene"]
    text.write_text("text\n" + "\n".join(f'"{line}"' for line in lines * 4))
    path = write_recipe(
        task="text-generation",
        data={"path": {"train": str(text), "validation": str(text)}},
        teacher=cached(make_model("llama-lm", layers=2), top=8),
        student={"name": "copy_layers", "layers": 1},
        objectives=[{"name": "kl", "temperature": 2.0}],
    )
    report = run(path)
    assert report.student.metrics["perplexity"] > 1
    assert 0 < report.agreement <= 1
    assert "3 examples (of 24; the others are equal to one of these)" in str(report.settings["teacher's answers"])
    assert "the likeliest 8 of" in str(report.settings["teacher's answers"])


def test_masks_that_change(write_recipe: WriteRecipe, make_model: Any, tmp_path: Path) -> None:
    """Other masks in every epoch: refused with the way out, and with it the teacher is asked once."""
    text = tmp_path / "text.csv"
    text.write_text("text\n" + "\n".join(["the film is great .", "a dull plot and a stale story !"] * 4))
    sections = {
        "task": "fill-mask",
        "data": {"path": {"train": str(text), "validation": str(text)}},
        "student": {"name": "copy_layers", "layers": 1},
        "objectives": [{"name": "kl"}],
    }
    model = make_model("bert-mlm", layers=2)
    with pytest.raises(UserError, match=r"frozen_masks: fill-mask masks other tokens in every epoch"):
        run(write_recipe(teacher=cached(model), **sections))
    exact = {"frozen_masks": True, "top": 10_000, "precision": "float32"}
    curves = []
    for name, teacher in {
        "live": {"name": "pretrained", "model": str(model)},
        "cached": cached(model, **exact),
    }.items():
        training = {"output_dir": str(tmp_path / name), "num_train_epochs": 2, "optim": "sgd", "learning_rate": 0.05}
        report = run(write_recipe(teacher=teacher, training=training, **sections))
        assert 0 < report.agreement <= 1
        curves.append([step["objective/kl"] for step in report.history["student"] if "objective/kl" in step])
    # Eight examples, steps of eight: the masks of the first epoch are those that the seed gives, and they stay.
    (live_first, live_second), (first, second) = curves
    assert first == pytest.approx(live_first, rel=1e-4)
    assert second != pytest.approx(live_second, rel=1e-2)


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"objectives": [{"name": "attention"}]}, r"objectives\[0\]: 'attention' looks into the teacher \(its maps"),
    ({"objectives": [{"name": "relations"}]}, r"objectives\[0\]: 'relations' looks into the teacher"),
    ({"teacher": {"name": "cached"}}, r"teacher\.teacher: wanted a mapping"),
    ({"teacher": cached("x", top=0)}, r"teacher\.top: "),
    ({"teacher": {"name": "cached", "teacher": {"name": "pretrained", "modle": "x"}}}, r"teacher\.teacher\.modle: "),
    ({"teacher": {"name": "cached", "teacher": cached("x")}}, "not a cached one"),
]


@pytest.mark.parametrize(("sections", "line"), MISTAKES)
def test_mistakes(sections: dict[str, Any], line: str, write_recipe: WriteRecipe, make_model: Any) -> None:
    """Told before weights are loaded, at the line where they are."""
    sections = {"teacher": cached(make_model("bert", layers=4, seed=1)), "objectives": KL_AND_LABELS, **sections}
    with pytest.raises(UserError, match=line):
        run(write_recipe(**sections))


def test_objectives_on_a_drawn_tail(write_recipe: WriteRecipe, make_model: Any, tmp_path: Path) -> None:
    """What else a sampled tail is good for is asked of whoever reads `tail`; the recipe answers before the teacher
    runs."""
    text = tmp_path / "text.csv"
    text.write_text("text\nthe film is great .\n")
    path = write_recipe(
        task="text-generation",
        data={"path": {"train": str(text), "validation": str(text)}},
        teacher=cached(make_model("llama-lm", layers=2), top=8, tail=4),
        objectives=[{"name": "kl"}, {"name": "soft_cross_entropy"}, {"name": "js"}],
    )
    _, line = refused(lambda: run(path))
    assert "objectives[2]: 'js' does not work with tokens that were drawn from the tail" in line
    assert "Wanted kl or soft_cross_entropy" in line


def test_two_temperatures(write_recipe: WriteRecipe, make_model: Any, tmp_path: Path) -> None:
    """Tokens put together at one temperature cannot be softened to another."""
    text = tmp_path / "text.csv"
    text.write_text("text\nthe film is great .\n")
    path = write_recipe(
        task="text-generation",
        data={"path": {"train": str(text), "validation": str(text)}},
        teacher=cached(make_model("llama-lm", layers=2)),
        objectives=[{"name": "kl", "temperature": 2.0}, {"name": "reverse_kl", "temperature": 4.0}],
    )
    with pytest.raises(
        UserError, match=r"objectives\[1\]\.temperature: 4 here, and a cached teacher gives .* temperature 2"
    ):
        run(path)


def test_a_written_recipe_reads_back(write_recipe: WriteRecipe, make_model: Any) -> None:
    """The resolved recipe in `output_dir` is what a resume compares with: it has to name the teacher within."""
    from hf_distill import load_recipe
    from hf_distill.recipe.writer import dump_recipe

    recipe = load_recipe(write_recipe(teacher=cached(make_model("bert", layers=4, seed=1), top=7)))
    path = Path(str(write_recipe())).with_name("again.yaml")
    path.write_text(dump_recipe(recipe))
    assert load_recipe(path).teacher == recipe.teacher
    assert json.loads(json.dumps(recipe.teacher.top)) == 7


def test_a_cache_leaves_the_directory_of_the_run_alone(
    write_recipe: WriteRecipe, make_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`hf-distill cache` wrote its recipe into output_dir: the student that was to be tried next, with another learning
    rate, was refused, and so was a cache for a second recipe with the same directory."""
    seen = count_calls(monkeypatch)
    path = write_recipe(teacher=cached(make_model("bert", layers=4, seed=1), path=str(tmp_path / "cache")))
    assert main(["cache", str(path)]) == 0
    assert not (tmp_path / "out").exists()
    run(path, "training.learning_rate=1e-4")
    assert main(["cache", str(path), "training.learning_rate=1e-5"]) == 0, "that directory holds a run by now"
    assert "learning_rate: 0.0001" in (tmp_path / "out" / "recipe.yaml").read_text()
    assert sum(seen) == 96


def test_a_cache_trains_its_teacher_where_any_run_finds_it(
    write_recipe: WriteRecipe, make_model: Any, tmp_path: Path, capsys: Any
) -> None:
    """A teacher that is trained in output_dir does not make that directory a run's: the next student is another one.
    The precision that it began with stays, and files that are not ours are left alone."""
    teacher = {"name": "finetuned", "model": str(make_model("bert-bare", layers=2)), "training": {"max_steps": 3}}
    path = write_recipe(teacher={"name": "cached", "teacher": teacher, "path": str(tmp_path / "cache")})
    assert main(["cache", str(path), "training.bf16=true"]) == 0
    (trained,) = (tmp_path / "out" / "_teacher").glob("*/_fit.json")
    written = trained.stat().st_mtime_ns
    assert {one.name for one in (tmp_path / "out").iterdir()} == {"_teacher", "_run.json", "_lock"}
    capsys.readouterr()
    run(path, "training.learning_rate=1e-4", "training.bf16=auto")
    assert "bf16: on (as this run began)" in capsys.readouterr().out
    assert [trained] == list((tmp_path / "out" / "_teacher").glob("*/_fit.json"))
    assert trained.stat().st_mtime_ns == written, "the teacher was found, not trained again"
    assert main(["cache", str(path), "training.learning_rate=1e-5", "training.bf16=auto"]) == 0
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("x")
    assert main(["cache", str(path), f"training.output_dir={tmp_path / 'thesis'}"]) == 2
    assert "is not empty and was not written by this package" in capsys.readouterr().err


def test_a_finetuned_teacher_and_a_resume(write_recipe: WriteRecipe, make_model: Any, tmp_path: Path) -> None:
    """The teacher is trained first, then asked; the same command again is the finished run, bit for bit."""
    teacher = {"name": "finetuned", "model": str(make_model("bert-bare", layers=2)), "training": {"max_steps": 3}}
    path = write_recipe(teacher={"name": "cached", "teacher": teacher, "path": str(tmp_path / "cache")})
    first = run(path)
    before = weights(tmp_path / "out")
    assert run(path).student.metrics == first.student.metrics
    assert same(before, weights(tmp_path / "out"))


@pytest.mark.parametrize("workers", [0, 2])
def test_two_tokenizers(write_recipe: WriteRecipe, make_model: Any, tmp_path: Path, workers: int) -> None:
    """What the teacher read is found by the teacher's tokens, and the student's batch has none of them: the curves and
    the report are the live teacher's, workers of the data loader or not."""
    found = {}
    for name in ("live", "cached"):
        teacher = {"name": "pretrained", "model": str(make_model("roberta", layers=2))}
        path = write_recipe(
            teacher=teacher if name == "live" else {"name": "cached", "teacher": teacher},
            student={"name": "pretrained", "model": str(make_model("bert-bare", layers=1))},
            training={
                "output_dir": str(tmp_path / name),
                "optim": "sgd",
                "learning_rate": 0.05,
                "dataloader_num_workers": workers if name == "cached" else 0,
            },
        )
        found[name] = run(path)
    live, cached_one = found["live"], found["cached"]
    assert cached_one.student.metrics == live.student.metrics
    assert cached_one.teacher.metrics == live.teacher.metrics
    curves = [
        [step["objective/kl"] for step in one.history["student"] if "objective/kl" in step] for one in found.values()
    ]
    assert curves[1] == pytest.approx(curves[0], rel=1e-4)
    assert len(curves[0]) == 8
