"""`hf-distill sweep`: a run for each setting, what they share trained once, one table at the end."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from forked import two_processes
from runs import WriteRecipe, run, same, weights

from hf_distill import UserError
from hf_distill.cli import main
from hf_distill.report.report import Report
from hf_distill.run.sweep.axes import Axis, read_words, text_of
from hf_distill.run.sweep.command import check, sweep
from hf_distill.run.sweep.drawing import Past, draw
from hf_distill.run.sweep.planning import SweepOptions, plan

TEMPERATURES = "objectives.0.temperature=[1,2]"
RATES = "training.learning_rate=[1e-3,2e-3]"


@pytest.fixture
def recipe(write_recipe: WriteRecipe, make_model: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe that fine-tunes its teacher, stores its targets, and trains a baseline; two steps each, no plots."""
    monkeypatch.setattr("hf_distill.report.page.plots", lambda report: [])
    bare = str(make_model("bert-bare", layers=2))
    return write_recipe(
        teacher={"name": "cached", "teacher": {"name": "finetuned", "model": bare, "training": {"max_steps": 2}}},
        student={"name": "copy_layers", "layers": 1, "model": bare},
        training={"max_steps": 2, "save_steps": 1, "save_strategy": "steps"},
        report={"latency": False, "baseline": True},
    )


def told(*words: str, of: Path, **options: Any) -> list[str]:
    """Return the mistakes that `--check` finds."""
    with pytest.raises(UserError) as caught:
        check(plan(str(of), words, SweepOptions(**options)))
    return list(caught.value.mistakes)


def record(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((path / "sweep.json").read_text())
    return found


def trained(path: Path) -> dict[Path, int]:
    """Return when each model below a directory was written."""
    return {one: one.stat().st_mtime_ns for one in path.rglob("model.safetensors") if "checkpoint" not in str(one)}


def test_settings_on_other_rows_are_not_ranked() -> None:
    """`data.splits.eval` with two values has a winner: the easier rows."""
    from dataclasses import replace

    from reports import whole

    from hf_distill.report.ancestors import Ancestor
    from hf_distill.report.sweep.plot import plot as drawn
    from hf_distill.report.sweep.results import SettingRun, Sweep
    from hf_distill.report.sweep.text import rows, verdict

    def trial(name: str, on: str, accuracy: float) -> SettingRun:
        report = whole()
        student = replace(report.student, metrics={**report.student.metrics, "accuracy": accuracy})
        report = replace(report, student=student, lineage=(Ancestor(name="student", rows=on),))
        return SettingRun(name, {"data.splits.eval": name}, "finished", report)

    trials = trial("a", "one", 0.8), trial("b", "other", 0.9)
    apart = Sweep("recipe.yaml", ("data.splits.eval",), trials)
    assert (apart.best, apart.within_noise, apart.is_certain, drawn(apart)) == (None, [], False, None)
    assert "eval rows" in verdict(apart)[0]
    assert [row.cells[:2] for row in rows(apart)] == [("a", "80.0 %"), ("b", "90.0 %")]
    alike = Sweep("recipe.yaml", ("data.splits.eval",), (trials[0], trial("b", "one", 0.9)))
    assert alike.best_of == "b"


def test_a_setting_is_as_far_behind_as_its_mean_says() -> None:
    """With `report.seeds` as a key the first seeds would be compared, and the best setting could be behind another."""
    from dataclasses import replace

    from reports import several_seeds, whole

    from hf_distill.report.sweep.results import SettingRun, Sweep

    several = several_seeds((0.9, 0.7, 0.7), (0.5,) * 3)
    single = replace(whole(), seeds=(), student=replace(whole().student, metrics={"accuracy": 0.8}))
    settings = (SettingRun(str(n), {"k": n}, "finished", one) for n, one in enumerate((several, single)))
    found = Sweep("r", ("k",), tuple(settings))
    assert found.best_of == "1"
    assert found.against_best["0"].difference == pytest.approx(0.8 - (0.9 + 0.7 + 0.7) / 3)


def test_a_finished_setting_is_run_again_to_be_exported(recipe: Path) -> None:
    """The sweep would say that all is done, and no setting would have the format that was asked for."""
    from dataclasses import replace

    from reports import whole

    from hf_distill.recipe.writer import dump_recipe
    from hf_distill.run.directory import RunDirectory
    from hf_distill.run.sweep.sources import sources
    from hf_distill.run.sweep.trials import finished

    asked = plan(str(recipe), [TEMPERATURES], SweepOptions())
    one = asked.read(asked.settings()[0])
    directory = RunDirectory(one.directory, dump_recipe(one.recipe))
    directory.claim(False)
    directory.lock.release()
    replace(whole(), recipe=dump_recipe(one.recipe)).save(one.directory)
    entry = {"state": "finished", "sources": sources(one.recipe)}
    assert finished(one, entry) is not None
    exported = replace(one.recipe, export=replace(one.recipe.export, formats=["onnx"]))
    assert finished(replace(one, recipe=exported), entry) is None


# --- words and mistakes -----------------------------------------------------------------------------------------------


def test_words() -> None:
    """A list that is read as one value, or a value that is written back as another one, would run another setting than
    the table says."""
    words = read_words(["a.b=[1, 1e-5]", "c=[[{name: kl}], [{name: kl}, hidden]]", "d=x", "e=log(1e-5,1e-3)"])
    assert [(axis.key, axis.values) for axis in words.axes[:2]] == [
        ("a.b", (1, 1e-5)),
        ("c", ([{"name": "kl"}], [{"name": "kl"}, "hidden"])),
    ]
    assert words.axes[2] == Axis("e", kind="log", low=1e-5, high=1e-3)
    values: dict[str, Any] = {"a.b": 1e-5, "c": [{"name": "kl"}], "e": 3e-4}
    assert words.overrides(values) == ["a.b=1e-05", 'c=[{"name": "kl"}]', "d=x", "e=0.0003"]
    for value in (1e-5, 1, "1", "on", "null", "a: b", "train[:10]", True, None, [0, 2], {"name": "kl"}, ""):
        (axis,) = read_words([f"key=[{text_of(value)}]"]).axes if value != "train[:10]" else [Axis("key", (value,))]
        assert axis.values == (value,)
        assert type(axis.values[0]) is type(value)
    for word, part in {
        "x=[]": "wanted values to try",
        "x=lg(1,2)": "Known: log(a,b)",
        "x=log(0,1)": "above 0",
        "x=uniform(2,1)": "smaller one first",
        "x=int(1,2.5)": "whole",
        "x=[1": "not closed",
        "=[1,2]": "wanted key=[..]",
        "x=1": "a sweep needs values to try",
    }.items():
        with pytest.raises(UserError) as caught:
            read_words([word])
        assert part in str(caught.value)
    assert read_words(["x=[2,1,2.0,1]"]).axes[0].values == (2, 1)
    assert read_words(["x=[1,true,'1']"]).axes[0].values == (1, True, "1")


@pytest.mark.parametrize(
    "again", ["objectives.0.temperature=4", "objectives[0].temperature=[4]", "objectives=[[kl],[mse]]"]
)
def test_a_value_that_replaces_those_to_try(again: str) -> None:
    """All runs of the sweep would be the same one, and the best of them chance."""
    with pytest.raises(UserError, match=r"replaces what|given twice") as caught:
        read_words(["objectives[0].temperature=[1,2]", again])
    assert len(caught.value.mistakes) == 1
    read_words(["objectives=[[kl],[mse]]", "objectives.0.weight=2"])


def test_what_is_drawn_is_not_known_before(recipe: Path) -> None:
    """The end of a range under "first run" would be taken for a setting that is run."""
    pytest.importorskip("optuna")
    ranged = ["training.learning_rate=log(1e-4,1e-2)", "objectives.0.temperature=[1,2]"]
    said = check(plan(str(recipe), ranged, SweepOptions(trials=1)))
    assert said[0].startswith("sweep       1 setting of training.learning_rate log(0.0001, 0.01), objectives.0.temp")
    assert any(line.startswith("values      drawn when the sweep runs") for line in said)
    assert not any(line.startswith("first run") for line in said)
    said = check(plan(str(recipe), ["objectives.0.temperature=[1,2]"], SweepOptions(trials=50)))
    assert said[0].startswith("sweep       2 settings of objectives.0.temperature [1, 2], drawn at random")
    assert said[1] == "runs        2 to run"


def test_mistakes_are_told_at_once_and_with_the_setting(recipe: Path, tmp_path: Path) -> None:
    """The mistake of one setting would otherwise show after the hours that the settings before it took."""
    (line,) = told("objectives.0.temprature=[1,2,4]", RATES, of=recipe)
    assert "objectives.0.temprature=1" in line
    assert "Did you mean 'temperature'?" in line
    lines = told("objectives.0.temperature=[1,-2]", "training.learning_rate=[1e-3,x]", of=recipe)
    assert [line.partition("'")[2].partition("'")[0] for line in lines] == [
        "training.learning_rate=x",
        "objectives.0.temperature=-2",
    ]
    # What only both values together make wrong has the setting.
    lines = told(
        "student.layers=[1,2]", "objectives=[[{name: kl}],[{name: hidden, layers: [[2, 2]]}]]", of=recipe
    )  # fmt: skip
    assert len(lines) == 1
    assert lines[0].startswith("with layers 1, objectives hidden (layers 2, 2): ")
    (line,) = told("student.layers=[[0,7],[0,1]]", of=recipe)
    assert "student.layers=[0, 7]" in line
    (line,) = told("data.columns.text=[sentence]", "teacher.teacher.training.lr=[1]", of=recipe)
    assert "lr" in line
    assert not (tmp_path / "out-sweep").exists()


def test_options_that_do_not_fit(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of these would be ignored, or show when the first runs are done."""
    ranged = "training.learning_rate=log(1e-4,1e-3)"
    assert "--trials" in told(ranged, of=recipe)[0]
    assert "--trials" in told(RATES, of=recipe, sampler="tpe")[0]
    assert "from 1 on" in told(ranged, of=recipe, trials=0)[0]
    assert "--into" in told(RATES, "training.output_dir=x", of=recipe)[0]
    assert "--seeds sets report.seeds" in told(RATES, "report.seeds=2", of=recipe, seeds=2)[0]
    assert "Did you mean 'accuracy'?" in told(RATES, of=recipe, metric="acuracy")[0]
    assert "evaluated by accuracy" in told(RATES, of=recipe, metric="perplexity")[0]
    assert "--trials 50" in told(*(f"{key}=[{','.join(map(str, range(11)))}]" for key in "abc"), of=recipe)[0]
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'hf-distill[sweep]'" in told(ranged, of=recipe, trials=2)[0]
    with pytest.raises(SystemExit):
        main([str(recipe), "--trials", "3"])


def test_a_directory_of_something_else_is_left_alone(recipe: Path, tmp_path: Path) -> None:
    """A sweep would otherwise fill it with runs, or mix its table with them."""
    (tmp_path / "notes.txt").touch()
    (line,) = told(RATES, of=recipe, into=str(tmp_path))
    assert "holds no sweep" in line


# --- a grid -----------------------------------------------------------------------------------------------------------


def test_a_grid(recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Each run must be the run that its setting alone would be; teachers and equal baselines are trained once; a second
    start runs what is new and nothing else; another recipe is refused."""
    said = "\n".join(check(plan(str(recipe), [TEMPERATURES, RATES], SweepOptions())))
    assert "4 settings" in said
    assert "fine-tuned once for all 4" in said
    assert "trained 2 times at most for 4" in said
    assert main(["sweep", str(recipe), TEMPERATURES, "training.learning_rate=[1e-3]"]) == 0
    out = tmp_path / "out-sweep"
    before = trained(out)
    assert len(before) == 4  # teacher, baseline, two students
    assert main(["sweep", str(recipe), TEMPERATURES, RATES, "--metric", "f1"]) == 0
    after = trained(out)
    assert before.items() <= after.items()
    assert len(after) == 7
    found = record(out)
    assert [one["state"] for one in found["settings"]] == ["finished"] * 4
    scores = [one["student"] for one in found["settings"]]
    assert scores == sorted(scores, reverse=True)
    assert found["metric"] == "f1"
    assert "Its student: " in (said := capfd.readouterr().out)
    assert found["best"] in said
    assert "Best of 4 settings" in (page := (out / "sweep.html").read_text())
    assert "<svg" in page
    one = next(one for one in found["settings"] if one["values"]["objectives.0.temperature"] == 2)
    rate = one["values"]["training.learning_rate"]
    run(recipe, "objectives.0.temperature=2", f"training.learning_rate={rate}")
    assert same(weights(out / one["directory"]), weights(tmp_path / "out"))
    alone, swept = Report.load(tmp_path / "out"), Report.load(out / one["directory"])
    assert (alone.baseline, alone.teacher, alone.student) == (swept.baseline, swept.teacher, swept.student)
    (line,) = told(TEMPERATURES, RATES, "training.max_steps=3", of=recipe)
    assert "training.max_steps is 2 there and 3 here" in line


def test_seeds_and_settings_that_fail(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A setting that fails must neither end the others nor be forgotten; tried again, it is repaired. Seeds make the
    spread that says which differences are noise."""
    from hf_distill.run.run import Run

    store = Run.store_targets

    def fails(self: Run, teacher: Any) -> None:
        if "temperature-1" in str(self.directory.path):
            raise UserError("the disk has no room for so many targets.")
        store(self, teacher)

    words = ["sweep", str(recipe), "objectives.0.temperature=[1,2,4]", "--seeds", "2"]
    with monkeypatch.context() as patch:
        patch.setattr(Run, "store_targets", fails)
        assert main(words) == 1
    found = record(tmp_path / "out-sweep")
    assert [one["state"] for one in found["settings"]] == ["finished", "finished", "failed"]
    assert "no room" in found["settings"][2]["error"]
    assert any("no room" in line for line in found["verdict"])
    assert main(words) == 0
    found = record(tmp_path / "out-sweep")
    assert [len(one["seeds"]) for one in found["settings"]] == [2, 2, 2]
    assert all(one["std"] is not None and one["gain"] is not None for one in found["settings"])


def test_an_interrupted_sweep_goes_on(recipe: Path, tmp_path: Path) -> None:
    """What is finished stays, the run that was interrupted resumes from its checkpoint, and its student is the same."""
    import transformers

    class Interrupt(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if (
                "temperature-2" in str(args.output_dir)
                and "_runs" not in str(args.output_dir)
                and state.global_step == 1
            ):
                os.kill(os.getpid(), signal.SIGINT)

    words = ["sweep", str(recipe), TEMPERATURES]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hf_distill.run.run.sample_texts", lambda *args: (Interrupt(),))
        assert main(words) == 130
    out = tmp_path / "out-sweep"
    assert [one["state"] for one in record(out)["settings"]] == ["finished", "running"]
    before = trained(out)
    resumed = next(out.glob("temperature-2*"))
    assert [one.name for one in resumed.glob("checkpoint-*")] == ["checkpoint-1"]
    assert main(words) == 0
    assert before.items() <= trained(out).items()
    run(recipe, "objectives.0.temperature=2")
    assert same(weights(resumed), weights(tmp_path / "out"))


# --- drawn settings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_draws(sampler: str) -> None:
    """An interrupted search must go on with the settings that it would have drawn, each process of a launch draw the
    same, and no setting be run twice."""
    pytest.importorskip("optuna")
    axes = [Axis("a", kind="log", low=1e-5, high=1e-3), Axis("b", ([0, 2], "x")), Axis("c", kind="int", low=1, high=3)]

    def search() -> list[Past]:
        past: list[Past] = []
        for _ in range(14):
            values = draw(axes, past, sampler=sampler, seed=42, greater_is_better=False)
            assert values is not None
            assert all(axis.holds(values[axis.key]) for axis in axes)
            past.append(Past(values, None if len(past) == 3 else values["a"]))
        return past

    found = search()
    assert found == search()
    assert len({repr(one.values) for one in found}) == 14
    small = [axes[1]]
    past: list[Past] = []
    while (values := draw(small, past, sampler=sampler, seed=1, greater_is_better=True)) is not None:
        past.append(Past(values, 1.0))
    assert len(past) == 2


def test_a_random_search(recipe: Path, tmp_path: Path) -> None:
    """More trials of the same search draw further settings, and keep those before; so do other values of its keys."""
    pytest.importorskip("optuna")
    words = ["training.learning_rate=log(1e-4,1e-2)"]
    first = sweep(plan(str(recipe), words, SweepOptions(trials=1)))
    again = sweep(plan(str(recipe), words, SweepOptions(trials=2)))
    assert len(first.trials) == 1
    assert len(again.trials) == 2
    assert again.trials[0].values == first.trials[0].values != again.trials[1].values
    other = sweep(plan(str(recipe), ["training.learning_rate=[0.03]"], SweepOptions(trials=9)))
    assert [one.values["training.learning_rate"] for one in other.trials[2:]] == [0.03]
    assert "<svg" in (tmp_path / "out-sweep" / "sweep.html").read_text()


def test_two_processes_run_the_same_settings(recipe: Path, tmp_path: Path) -> None:
    """Processes that draw or choose different settings would wait for each other without end."""
    words, options = (
        ["training.learning_rate=[1e-3,2e-3]", "training.use_cpu=true"],
        SweepOptions(trials=2, sampler="tpe"),
    )

    def work() -> list[Any]:
        return [(dict(one.values), one.state) for one in sweep(plan(str(recipe), words, options)).trials]

    one, other = two_processes(work, tmp_path / "results")
    assert one == other
    assert [state for _, state in one] == ["finished", "finished"]
    assert record(tmp_path / "out-sweep")["best"]
