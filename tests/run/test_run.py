"""`distill(recipe)` from end to end on real tiny models: what it writes, how it resumes, what it refuses."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from forked import start, status, two_processes
from runs import WriteRecipe, command, run, same, unfinish, weights

from hf_distill.errors import UserError


@pytest.mark.usefixtures("brief_latency")
def test_a_run_writes_a_student_a_card_a_recipe_and_a_report(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    """A run could succeed and leave something that Transformers cannot open, or promised keys out of the report."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    report = run(write_recipe(report={"baseline": True}), drawn=True)
    out = tmp_path / "out"
    published = {file.name for file in out.iterdir() if not file.name.startswith("_")}
    assert published == {
        *("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
        *("README.md", "recipe.yaml", "report.json", "report.html"),
    }
    student, info = AutoModelForSequenceClassification.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert student.config.num_hidden_layers == 2
    assert student.config.id2label == {0: "negative", 1: "positive"}
    assert AutoTokenizer.from_pretrained(out)("a great film")["input_ids"]
    content = json.loads((out / "report.json").read_text())
    promised = {"task", "metric", "teacher", "student", "baseline", "retention", "gain", "agreement"}
    assert promised | {"compression", "speedup"} <= content.keys()
    for model in ("teacher", "student", "baseline"):
        assert {"metrics", "parameters", "bytes", "latency_ms", "throughput"} <= content[model].keys()
        assert content[model]["latency_ms"] > 0
    assert content["metric"] == "accuracy"
    assert report.gain == pytest.approx(
        content["student"]["metrics"]["accuracy"] - content["baseline"]["metrics"]["accuracy"]
    )
    # The teacher's weights are random; half of the 32 rows are positive.
    assert 0.5 <= content["chance"]["value"] < 0.6
    assert content["verdict"][0].startswith("The teacher is no better than a trivial guess: its accuracy is ")
    assert "kept 1" not in content["verdict"][0]


def test_the_reported_numbers_are_those_of_the_saved_student(
    write_recipe: WriteRecipe, tmp_path: Path, sentiment_csv: Any, make_model: Any
) -> None:
    """The report could describe other weights than the ones on disk, or pair rows of the two models wrongly."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    report = run(write_recipe(training={"train_sampling_strategy": "group_by_length", "num_train_epochs": 2}))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    with sentiment_csv.validation.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    guesses = {}
    for name, where in (("student", tmp_path / "out"), ("teacher", make_model("bert", layers=4, seed=1))):
        model = AutoModelForSequenceClassification.from_pretrained(where)
        with torch.no_grad():
            logits = [model(**tokenizer(row["sentence"], return_tensors="pt")).logits[0] for row in rows]
        guesses[name] = [model.config.id2label[int(row.argmax())] for row in logits]
    accuracy = sum(guess == row["label"] for guess, row in zip(guesses["student"], rows, strict=True)) / len(rows)
    agreement = sum(one == two for one, two in zip(*guesses.values(), strict=True)) / len(rows)
    assert report.student.metrics["accuracy"] == pytest.approx(accuracy)
    assert report.agreement == pytest.approx(agreement)


def test_the_same_command_again_changes_nothing(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    """A second run could train again, from the student or from scratch, and overwrite what was finished."""
    path = write_recipe(report={"latency": False, "baseline": True})
    run(path)
    out = tmp_path / "out"
    before = weights(out)
    written = (out / "model.safetensors").stat().st_mtime_ns
    again = run(path)
    assert (out / "model.safetensors").stat().st_mtime_ns == written
    assert same(before, weights(out))
    assert again.baseline is not None


def test_layers_are_not_measured_on_a_trained_student(
    write_recipe: WriteRecipe, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Found finished, a run would show pairs that it was not trained with; or nobody would see or find them at all."""
    path = write_recipe(objectives=[{"name": "hidden", "layers": "similarity"}])
    with caplog.at_level("INFO", logger="hf_distill"):
        for measured in (1, 0):
            caplog.clear()
            run(path)
            printed = capsys.readouterr().out
            assert printed.count("linear CKA of the student's layers") == measured
            assert caplog.text.count("linear CKA") == measured
            if measured:
                told = json.loads(re.findall(r"^layers: (.*)$", printed, re.MULTILINE)[0])
                assert [mine for mine, _ in told] == [1, 2]
            assert json.loads((tmp_path / "out" / "report.json").read_text())["settings"]["layers"] == {
                "student": {"hidden": told}
            }


def test_a_killed_run_resumes_and_ends_with_the_same_weights(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    """A resumed run could start over, skip data or use another order: nobody would see it in the loss."""
    training = {
        "num_train_epochs": 3,
        "save_strategy": "steps",
        "save_steps": 4,
        "eval_strategy": "no",
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 4,
    }
    whole = write_recipe(training={**training, "output_dir": str(tmp_path / "whole")})
    run(whole)
    out = tmp_path / "out"
    path = write_recipe(training=training)
    child, deadline = start(lambda: run(path)), time.monotonic() + 120
    while not (out / "checkpoint-8" / "trainer_state.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    assert (status(child) == -signal.SIGKILL) != (out / "report.json").exists()
    run(path)
    assert same(weights(tmp_path / "whole"), weights(out))


def test_a_half_written_checkpoint_is_not_resumed_from(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    """A kill while saving leaves a newer directory without its state; resuming from it fails or loses the optimizer."""
    path = write_recipe(training={"save_strategy": "steps", "save_steps": 2, "save_total_limit": 9})
    whole = run(path)
    out = tmp_path / "out"
    reference = weights(out)
    # The state right after a kill: the fit unfinished, one good checkpoint, one begun.
    run_again = write_recipe(training={"save_strategy": "steps", "save_steps": 2, "save_total_limit": 9})
    unfinish(out)
    begun = out / "checkpoint-6"
    begun.mkdir()
    (begun / "model.safetensors").write_bytes(b"\0" * 100)
    assert run(run_again).student.metrics == whole.student.metrics
    assert same(reference, weights(out))


def test_another_recipe_is_refused_and_restart_starts_over(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    """A changed recipe in an old directory could resume the old run, or destroy it."""
    run(write_recipe())
    before = weights(tmp_path / "out")
    changed = write_recipe(student={"name": "copy_layers", "layers": 1})
    with pytest.raises(UserError, match=r"another recipe: student.layers is 2 there and 1 here\..*--restart"):
        run(changed)
    assert same(before, weights(tmp_path / "out"))
    run(changed, restart=True)
    assert len(weights(tmp_path / "out")) < len(before)


def test_report_options_may_change_without_training_again(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    """Asking for the baseline afterwards could be refused as another recipe, or train the student twice."""
    run(write_recipe())
    written = (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns
    report = run(write_recipe(report={"latency": False, "baseline": True}))
    assert report.baseline is not None
    assert (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns == written


def test_changed_data_is_not_mistaken_for_the_same_run(
    write_recipe: WriteRecipe, tmp_path: Path, sentiment_csv: Any
) -> None:
    """The recipe names a file; if its content changed, resuming or reusing the student would mix two data sets."""
    data = tmp_path / "train.csv"
    lines = sentiment_csv.train.read_text(encoding="utf-8").splitlines(keepends=True)
    data.write_text("".join(lines), encoding="utf-8")
    section = {
        "path": {"train": str(data), "validation": str(sentiment_csv.validation)},
        "columns": {"text": "sentence"},
    }
    run(write_recipe(data=section))
    data.write_text("".join(lines[:-8]), encoding="utf-8")
    with pytest.raises(UserError, match="other models, data or settings"):
        run(write_recipe(data=section))


def test_a_directory_with_other_files_is_refused(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    """A run must not overwrite the README or model that happens to lie in its output directory."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "README.md").write_text("mine")
    with pytest.raises(UserError, match="was not written by this package"):
        run(write_recipe())
    assert (tmp_path / "out" / "README.md").read_text() == "mine"


def test_faulty_data_leaves_nothing_behind(write_recipe: WriteRecipe, tmp_path: Path, sentiment_csv: Any) -> None:
    """A run that stops at its data must not leave a directory that the corrected run then refuses."""
    path = write_recipe()
    with pytest.raises(UserError, match=r"recipe\.yaml:1: data\.columns\.text: .*no column 'sentense'"):
        run(_with_column(path, "sentense"))
    assert not (tmp_path / "out").exists()
    run(_with_column(path, "sentence"))


def _with_column(path: Path, column: str) -> Path:
    recipe = json.loads(path.read_text())
    recipe["data"]["columns"]["text"] = column
    path.write_text(json.dumps(recipe))
    return path


def test_a_finetuned_teacher_is_trained_once(
    write_recipe: WriteRecipe, make_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hours of fine-tuning could be repeated by the next run, or an old teacher reused after its settings changed."""
    import torch

    from hf_distill.run.fit import Fitter

    trained: list[str] = []
    fit = Fitter.fit

    def spy(self: Any, model: Any, **options: Any) -> Any:
        fitted = fit(self, model, **options)
        trained.append(f"{Path(options['directory']).parent.name} {'reused' if fitted.reused else 'trained'}")
        return fitted

    monkeypatch.setattr(Fitter, "fit", spy)
    teacher = {
        "name": "finetuned",
        "model": str(make_model("bert-bare", layers=2)),
        "training": {"num_train_epochs": 1},
        "output_dir": str(tmp_path / "teachers"),
    }
    student = {"name": "copy_layers", "layers": 1}
    run(write_recipe(teacher=teacher, student=student))
    torch.manual_seed(12345)  # another process, another state: the new head must not depend on it
    run(write_recipe(teacher=teacher, student=student, training={"output_dir": str(tmp_path / "second")}))
    teacher["training"] = {"num_train_epochs": 2}
    run(write_recipe(teacher=teacher, student=student, training={"output_dir": str(tmp_path / "third")}))
    assert [line for line in trained if line.startswith("teachers")] == [
        "teachers trained",
        "teachers reused",
        "teachers trained",
    ]
    assert len(list((tmp_path / "teachers").iterdir())) == 2


def test_seeds_give_the_gain_a_spread(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    """All seeds could train with the same randomness, and the spread would be a false zero."""
    report = run(
        write_recipe(
            student={"name": "from_config", "overrides": {"num_hidden_layers": 1}},
            report={"baseline": True, "seeds": 3, "latency": False},
            training={"num_train_epochs": 2},
        )
    )
    assert [seed.seed for seed in report.seeds] == [42, 43, 44]
    gains = [seed.student["accuracy"] - seed.baseline["accuracy"] for seed in report.seeds]
    assert report.gain == pytest.approx(sum(gains) / 3)
    assert report.gain_std is not None
    runs = tmp_path / "out" / "_runs"
    assert sorted(folder.name for folder in runs.iterdir()) == [
        *("baseline", "baseline-seed-43", "baseline-seed-44"),
        *("student-seed-43", "student-seed-44"),
    ]
    assert not same(weights(runs / "student-seed-43"), weights(runs / "student-seed-44"))


def test_student_and_baseline_start_from_the_same_weights(
    write_recipe: WriteRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A baseline with another start would measure luck, not the teacher."""
    from hf_distill.models.fingerprint import model_fingerprint
    from hf_distill.run.fit import Fitter

    starts = []
    fit = Fitter.fit

    def spy(self: Any, model: Any, **options: Any) -> Any:
        starts.append(model_fingerprint(model))
        return fit(self, model, **options)

    monkeypatch.setattr(Fitter, "fit", spy)
    run(
        write_recipe(
            student={"name": "from_config", "overrides": {"num_hidden_layers": 1}},
            report={"baseline": True, "latency": False},
        )
    )
    assert len(starts) == 2
    assert starts[0] == starts[1]


def test_an_unlabelled_transfer_set_can_be_distilled_on(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    """Half the point of distillation: the teacher's targets need no labels, in training or in evaluation."""
    plain = tmp_path / "texts.csv"
    plain.write_text("text\n" + "\n".join(["a great film", "the dull plot", "it was very moving", "a boring cast"] * 8))
    data = {"path": str(plain), "splits": {"train": "train", "eval": "train[:8]"}}
    report = run(write_recipe(data=data, objectives=[{"name": "kl", "temperature": 2.0}]))
    assert report.metric == "agreement"
    assert report.agreement is not None
    assert report.student.metrics == {"agreement": report.agreement}
    with pytest.raises(UserError, match=r"objectives\[1\].*needs labels"):
        run(write_recipe(data=data, training={"output_dir": str(tmp_path / "other")}))
    with pytest.raises(UserError, match=r"report\.baseline.*needs? labels|learns from labels"):
        run(
            write_recipe(
                data=data,
                objectives=[{"name": "kl"}],
                report={"baseline": True},
                training={"output_dir": str(tmp_path / "other")},
            )
        )


def _table(path: Path, header: str, rows: list[str]) -> str:
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return str(path)


def test_regression(write_recipe: WriteRecipe, make_model: Any, tmp_path: Path) -> None:
    """A softmax over one value is constant: `kl` on regression would train on nothing without a word."""
    texts = ["a great film", "the dull plot", "it was very moving", "a boring cast"]
    rows = [f"{text},{score}" for text, score in zip(texts * 8, [4.5, 0.5, 3.25, 1.5] * 8, strict=True)]
    data = {
        "path": _table(tmp_path / "scores.csv", "text,score", rows),
        "columns": {"label": "score"},
        "splits": {"train": "train", "eval": "train[:12]"},
    }
    teacher = {"name": "pretrained", "model": str(make_model("bert", labels=["score"]))}
    objectives = [{"name": "logits_mse", "weight": 0.5}, {"name": "labels", "weight": 0.5}]
    report = run(write_recipe(data=data, teacher=teacher, objectives=objectives))
    assert report.metric == "pearson"
    assert report.agreement is None
    assert report.chance is not None
    with pytest.raises(UserError, match=r"objectives\[0\].*regression.*logits_mse"):
        run(write_recipe(data=data, teacher=teacher, training={"output_dir": str(tmp_path / "other")}))


def test_multi_label(write_recipe: WriteRecipe, make_model: Any, tmp_path: Path) -> None:
    """Several labels an example need a sigmoid each; a softmax over them would still train, and wrongly."""
    rows = [
        {"text": "a great film", "label": ["fun", "moving"]},
        {"text": "the dull plot", "label": []},
        {"text": "it was very moving", "label": ["moving"]},
        {"text": "a funny cast", "label": ["fun"]},
    ] * 8
    path = tmp_path / "several.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    teacher = make_model("bert", labels=["moving", "fun"], problem_type="multi_label_classification")
    report = run(
        write_recipe(
            data={"path": str(path), "splits": {"train": "train", "eval": "train[:12]"}},
            teacher={"name": "pretrained", "model": str(teacher)},
        )
    )
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"
    assert config["id2label"] == {"0": "moving", "1": "fun"}
    assert 0 <= report.agreement <= 1
    assert report.metric.startswith("f1")
    assert report.chance is not None


def test_a_student_larger_than_its_teacher_gets_one_warning(
    write_recipe: WriteRecipe, make_model: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """It is legal (a first step of a chain), but mostly the two were swapped."""
    teacher = {"name": "pretrained", "model": str(make_model("bert", layers=1))}
    student = {"name": "from_config", "overrides": {"num_hidden_layers": 3}}
    run(write_recipe(teacher=teacher, student=student))
    warnings = [record for record in caplog.records if "larger than its teacher" in record.getMessage()]
    assert len(warnings) == 1


def test_decoder_classifiers_distil(write_recipe: WriteRecipe, make_model: Any) -> None:
    """GPT-2 and Llama come without padding token: batches would fail, or the last token be taken from padding."""
    for kind in ("gpt2", "llama"):
        teacher = {"name": "pretrained", "model": str(make_model(kind, layers=2))}
        report = run(
            write_recipe(teacher=teacher, student={"name": "copy_layers", "layers": 1}),
            "report.latency=false",
            restart=True,
        )
        assert report.agreement is not None


def test_the_resolved_recipe_runs_again(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    """What is written beside the result must be the run, not an approximation of it."""
    from hf_distill import load_recipe

    path = write_recipe()
    first = run(path, "training.learning_rate=5e-4", "objectives.0.temperature=3")
    again = load_recipe(tmp_path / "out" / "recipe.yaml")
    assert again.training["learning_rate"] == 5e-4
    report = run(tmp_path / "out" / "recipe.yaml", f"training.output_dir={tmp_path / 'copy'}")
    assert report.student.metrics == first.student.metrics
    assert same(weights(tmp_path / "out"), weights(tmp_path / "copy"))


def test_an_output_directory_that_cannot_be_written(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    """Found out after hours of training, the work would be lost."""
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"training\.output_dir: .*file"):
        run(write_recipe(training={"output_dir": str(tmp_path / "file" / "out")}))
    with pytest.raises(UserError, match=r"training\.output_dir: .*file"):
        run(write_recipe(training={"output_dir": str(tmp_path / "file")}))


def test_a_full_disk_stops_with_a_line_and_the_run_resumes(
    write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A disk that fills up during a checkpoint must cost neither a traceback nor what was trained before."""
    import errno

    from hf_distill.cli import main
    from hf_distill.trainer import DistillationTrainer

    path = write_recipe(training={"save_strategy": "steps", "save_steps": 2})
    save = DistillationTrainer._save_rng_state

    def full(self: Any, directory: str) -> None:
        if directory.endswith("checkpoint-4"):
            raise OSError(errno.ENOSPC, "No space left on device", directory)
        save(self, directory)

    with monkeypatch.context() as patch:
        patch.setattr(DistillationTrainer, "_save_rng_state", full)
        assert main([str(path)]) == 1
    assert "disk is full" in capsys.readouterr().err
    assert not (tmp_path / "out" / "report.json").exists()
    assert main([str(path)]) == 0
    assert (tmp_path / "out" / "report.json").exists()


def test_a_faulty_training_argument_is_one_line(write_recipe: WriteRecipe) -> None:
    """Values that only clash with each other are found by TrainingArguments itself; its traceback helps nobody."""
    with pytest.raises(UserError, match=r"training\.logging_steps: .*logging_steps") as caught:
        run(write_recipe(training={"logging_steps": 0}))
    assert len(caught.value.mistakes) == 1
    assert "\n" not in str(caught.value)


def test_python_recipe_objects_run(
    write_recipe: WriteRecipe, tmp_path: Path, make_model: Any, sentiment_csv: Any
) -> None:
    """A recipe built in Python has no file; its messages and the report must not depend on one."""
    from hf_distill import distill
    from hf_distill.data.section import Data
    from hf_distill.objectives import KLDivergence
    from hf_distill.recipe.recipe import Recipe, ReportOptions
    from hf_distill.students import CopyLayers
    from hf_distill.tasks import TextClassification
    from hf_distill.teachers import PretrainedTeacher

    recipe = Recipe(
        task=TextClassification(),
        data=Data(
            path={"train": str(sentiment_csv.train), "validation": str(sentiment_csv.validation)},
            columns={"text": "sentence"},
        ),
        teacher=PretrainedTeacher(model=str(make_model("bert"))),
        student=CopyLayers(layers=[0, 3]),
        objectives=(KLDivergence(temperature=2.0),),
        training={"output_dir": str(tmp_path / "python"), "num_train_epochs": 1, "disable_tqdm": True},
        report=ReportOptions(latency=False),
    )
    assert distill(recipe).agreement is not None


def test_two_processes_write_what_one_writes(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    """With several processes the loss, the data order or the report could differ, or files be written twice."""
    training = {
        "max_steps": 6,
        "eval_strategy": "no",
        "lr_scheduler_type": "constant",
        "optim": "sgd",  # Adam makes steps of full size out of the rounding of a gradient that is zero
        "learning_rate": 0.1,
    }
    model = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    student = {"name": "from_config", "overrides": {"num_hidden_layers": 1, **model}}
    one = write_recipe(student=student, training={**training, "output_dir": str(tmp_path / "one")})
    single = run(one)
    two = write_recipe(student=student, training={**training, "per_device_train_batch_size": 4})
    two_processes(lambda: run(two, "training.use_cpu=true") and None, tmp_path / "results")
    content = json.loads((tmp_path / "out" / "report.json").read_text())
    assert content["settings"]["processes"] == 2
    assert content["agreement"] == pytest.approx(single.agreement)
    ours, theirs = weights(tmp_path / "one"), weights(tmp_path / "out")
    assert all(ours[name].sub(theirs[name]).abs().max() < 1e-4 for name in ours)


def test_a_run_keeps_the_precision_it_began_with(
    write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Resumed on a machine with other instructions, a run with `bf16: auto` would end with other weights."""
    from hf_distill import load_recipe
    from hf_distill.run import training_defaults as precision
    from hf_distill.run.dry_run import check

    monkeypatch.setattr(precision, "_capabilities", lambda: {"avx512_bf16": True})
    path = write_recipe(training={"bf16": "auto"})
    run(path)
    assert load_recipe(tmp_path / "out" / "recipe.yaml").training["bf16"] is True
    monkeypatch.setattr(precision, "_capabilities", lambda: {"avx512_bf16": False})
    written = (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns
    assert "bf16 auto" in check(load_recipe(path))
    run(path)
    assert (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns == written


def test_a_signal_saves_a_checkpoint_and_the_run_resumes(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    """With one checkpoint an epoch, Ctrl-C would throw away hours, or greet the user with a traceback; a cluster's
    SIGTERM, half a minute before the machine is taken away, threw them away."""
    training = {"num_train_epochs": 25, "save_strategy": "no", "eval_strategy": "no"}
    whole = write_recipe(training={**training, "output_dir": str(tmp_path / "whole")})
    run(whole)
    path = write_recipe(training={**training, "disable_tqdm": False})
    out, steps = tmp_path / "out", [0]
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        process, seen = command(path), ""
        assert process.stderr is not None
        while "/200 " not in seen and process.poll() is None:  # the bar is there: training is under way
            seen += process.stderr.read(1)
        time.sleep(0.5)
        process.send_signal(number)
        _, rest = process.communicate(timeout=120)
        assert process.returncode == code
        assert "Traceback" not in seen + rest
        steps.append(max(int(one.name.rpartition("-")[2]) for one in out.glob("checkpoint-*")))
        kept = out / f"checkpoint-{steps[-1]}"
        assert rest.endswith(f". Checkpoint: {kept}. Run the same command again to resume from it.\n")
    assert 0 < steps[1] < steps[2]
    run(path)
    assert same(weights(tmp_path / "whole"), weights(out))
