"""The command line: `hf_distill/cli.py`, `scripts/distill.py`."""

from __future__ import annotations

import errno
import gc
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from hf_distill import __version__
from hf_distill.cli import main
from hf_distill.errors import Stopped, UserError
from hf_distill.files.ownership import TRAINING
from hf_distill.files.records import write_record

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "distill.py"
RECIPE = """\
task: text-classification
data: {path: {train: x.csv, eval: x.csv}}
teacher: {name: pretrained, model: big}
student: {name: pretrained, model: small}
objectives: [kl]
training: {output_dir: out}
"""


@pytest.fixture(autouse=True)
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe `r.yaml` in the current directory, and no launcher around."""
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    path = Path("r.yaml")
    path.write_text(RECIPE)
    Path("x.csv").write_text("text,label\na,0\n")
    return path


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What was called in place of a run or a check."""
    made: list[tuple[Any, ...]] = []

    def distill(recipe: Any, *, restart: bool = False) -> None:
        made.append(("distill", recipe, restart))

    def check(recipe: Any) -> str:
        made.append(("check", recipe))
        return "what would happen"

    _replace(monkeypatch, distill=distill, check=check)
    return made


def _replace(monkeypatch: pytest.MonkeyPatch, **functions: Callable[..., Any]) -> None:
    for module, name in (("run.distill", "distill"), ("run.dry_run", "check")):
        if name in functions:
            fake = ModuleType(f"hf_distill.{module}")
            setattr(fake, name, functions[name])
            monkeypatch.setitem(sys.modules, fake.__name__, fake)


def _failing(error: BaseException) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    return fail


def test_a_run(calls: list[tuple[Any, ...]]) -> None:
    """Overrides and flags must reach the run wherever they stand between the arguments."""
    assert main(["r.yaml", "training.seed=1", "--restart", "objectives.0.weight=2"]) == 0
    ((name, recipe, restart),) = calls
    assert (name, restart) == ("distill", True)
    assert recipe.training == {"output_dir": "out", "seed": 1}
    assert recipe.objectives[0].weight == 2.0
    assert main(["r.yaml"]) == 0
    assert calls[1][2] is False


def test_a_check_runs_nothing(calls: list[tuple[Any, ...]], capsys: pytest.CaptureFixture[str]) -> None:
    """`--check` after an override, as people add it to the end of a command, must not start the run."""
    assert main(["r.yaml", "training.seed=1", "--check"]) == 0
    assert main(["--check", "r.yaml", "training.seed=1"]) == 0
    assert [call[0] for call in calls] == ["check", "check"]
    assert calls[0][1] == calls[1][1]
    assert capsys.readouterr().out == "what would happen\n" * 2


@pytest.mark.parametrize("arguments", [["--check"], []])
def test_what_fetches_missing_data_is_told(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """`no such file: data/quickstart/train.csv` sends people looking for a file that a script fetches."""
    quickstart = str(ROOT / "recipes" / "quickstart.yaml")
    assert main([quickstart, *arguments, "teacher.teacher.model=./nothing", "student.model=./nothing"]) == 2
    *_, last = capsys.readouterr().err.splitlines()
    assert last == (f"{quickstart} needs the data and the model: python scripts/fetch_quickstart.py (90 MB, once)")
    # A recipe that says nothing, and a mistake that fetching would not mend.
    assert main(["r.yaml", "--check", "data.path=y.csv"]) == 2
    assert "needs" not in capsys.readouterr().err
    assert main([quickstart, "report.baselin=true"]) == 2
    assert "fetch_quickstart" not in capsys.readouterr().err


def test_garbage_is_collected_in_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that starts without the search for garbage, and never turns it on, fills the memory within hours."""
    collecting: dict[str, bool] = {}

    def distill(*_: Any, **__: Any) -> None:
        collecting["run"] = gc.isenabled()

    def check(_: Any) -> str:
        collecting["check"] = gc.isenabled()
        return ""

    def doctor(*_: Any, **__: Any) -> bool:
        collecting["doctor"] = gc.isenabled()
        return True

    _replace(monkeypatch, distill=distill, check=check)
    monkeypatch.setattr("hf_distill.run.doctor.command.doctor", doctor)
    assert main(["r.yaml"]) == main(["r.yaml", "--check"]) == main(["doctor", "r.yaml"]) == 0
    assert collecting == {"run": True, "check": False, "doctor": True}
    assert gc.isenabled()


def test_mistakes_in_a_recipe(calls: list[tuple[Any, ...]], capsys: pytest.CaptureFixture[str]) -> None:
    """Status 2 and one line each: scripts that sweep tell a wrong recipe from a crash by it."""
    assert main(["r.yaml", "report.baselin=true", "objectives.0.T=2"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == [
        "override 'report.baselin=true': report.baselin: unknown key. Did you mean 'baseline'?",
        "override 'objectives.0.T=2': objectives[0].T: unknown key. It is called 'temperature' here.",
    ]
    assert calls == []


def test_mistakes_found_by_the_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Data or a launch at fault end like a recipe at fault: status 2, no traceback."""
    _replace(monkeypatch, distill=_failing(UserError("r.yaml:2: data: one", "r.yaml:3: teacher: two")))
    assert main(["r.yaml"]) == 2
    assert capsys.readouterr().err == "r.yaml:2: data: one\nr.yaml:3: teacher: two\n"


@pytest.mark.parametrize(
    ("ranks", "speaks"),
    [
        ({"RANK": "0", "LOCAL_RANK": "0"}, True),
        ({"RANK": "1", "LOCAL_RANK": "1"}, False),
        ({"RANK": "8", "LOCAL_RANK": "0"}, True),  # first of its machine, whose screen nobody else writes to
        ({"RANK": "3"}, False),
    ],
)
def test_of_several_processes_one_speaks(
    ranks: dict[str, str], speaks: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Eight copies of ten mistakes hide the one that matters; the status is that of all."""
    for name, value in ranks.items():
        monkeypatch.setenv(name, value)
    assert main(["none.yaml"]) == 2
    assert bool(capsys.readouterr().err) is speaks


KEPT = " Checkpoint: {}. Run the same command again to resume from it.\n"
NOTHING = " No checkpoint yet in out. Run the same command again: it repeats only the unfinished training.\n"


@pytest.mark.parametrize(
    ("error", "status", "word"),
    [
        (KeyboardInterrupt(), 130, "Interrupted."),
        (Stopped(signal.SIGINT), 130, "Interrupted."),
        (Stopped(signal.SIGTERM), 143, "Terminated."),
    ],
)
def test_interruption(
    error: BaseException,
    status: int,
    word: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """Somebody who presses Ctrl-C must learn what is kept; a script must not take it for a failure of the run, which
    ends with 1 and would be tried again."""
    _replace(monkeypatch, distill=_failing(error), check=_failing(error))
    assert main(["r.yaml"]) == status
    assert capsys.readouterr().err == f"\n{word}{NOTHING}"
    assert main(["r.yaml", "--check"]) == status
    assert capsys.readouterr().err == f"\n{word}\n"
    (tmp_path / "out").mkdir()
    write_record(tmp_path / "out" / TRAINING, {"key": "", "finished": True, "seconds": 0.0, "history": []})
    monkeypatch.chdir(tmp_path)
    assert main(["r.yaml"]) == status
    assert "All trainings in out are finished." in capsys.readouterr().err, "not in the report, which trains nothing"


@pytest.mark.parametrize(
    ("folder", "settings"),
    [
        ("out", []),
        ("out/_runs/student-stage-1", []),
        ("out/_teacher/a1b2", []),
        ("kept/a1b2", ["teacher={name: finetuned, model: big, output_dir: kept}"]),
        ("kept/a1b2", ["teacher={name: cached, teacher: {name: finetuned, model: big, output_dir: kept}}"]),
    ],
)
def test_what_is_kept_is_named(
    folder: str, settings: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run has several trainings; the one that is under way is the one that goes on."""
    _replace(monkeypatch, distill=_failing(KeyboardInterrupt()))
    for place, finished in (("out/_runs/baseline", True), (folder, False)):
        for step in (10, 9):
            checkpoint = Path(place, f"checkpoint-{step}")
            checkpoint.mkdir(parents=True)
            (checkpoint / "trainer_state.json").write_text(json.dumps({"global_step": step}))
            save_file({"weight": np.zeros(1)}, checkpoint / "model.safetensors")
            for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
                torch.save({}, checkpoint / name)
        record = {"key": "", "finished": finished, "seconds": 0, "history": []}
        Path(place, "_fit.json").write_text(json.dumps(record))
    assert main(["r.yaml", *settings]) == 130
    assert capsys.readouterr().err == "\nInterrupted." + KEPT.format(f"{folder}/checkpoint-10")


ELSEWHERE = " (of the output directory or of a cache)"


def _wrapped() -> Exception:
    error = RuntimeError("could not save")
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device", "out/model.safetensors")
    return error


@pytest.mark.parametrize(
    ("error", "where"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "out/x.bin"), " (out/x.bin)"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "out/x.bin"), " (out/x.bin)"),
        (_wrapped(), " (out/model.safetensors)"),
        (ValueError("I/O error: No space left on device (os error 28)"), " (of the output directory or of a cache)"),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"), ELSEWHERE),
        (RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"), ELSEWHERE),
    ],
)
def test_a_full_disk(
    error: Exception, where: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A hundred lines of traceback out of safetensors do not say what to do."""
    _replace(monkeypatch, distill=_failing(error))
    assert main(["r.yaml"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"The disk is full{where}. Free some space; the same command again resumes from the last checkpoint."


@pytest.mark.parametrize(
    "error", [OSError(errno.EACCES, "no"), ValueError("a bug"), RuntimeError("CUDA out of memory")]
)
def test_other_failures_keep_their_traceback(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own bugs must stay visible: a swallowed traceback cannot be reported."""
    _replace(monkeypatch, distill=_failing(error))
    with pytest.raises(type(error)) as raised:
        main(["r.yaml"])
    assert raised.value is error


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "the following arguments are required: RECIPE.yaml\n"),
        (
            ["r.yaml", "--learning_rate", "1e-4"],
            "unknown option --learning_rate. A recipe's values are set without dashes",
        ),
        (["r.yaml", "--chek"], "unknown option --chek."),
        (["r.yaml", "--rest"], "unknown option --rest."),
    ],
)
def test_wrong_arguments(
    arguments: list[str], said: str, calls: list[tuple[Any, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    """An abbreviation that is taken for `--restart` would throw a run away."""
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err
    assert calls == []


def _python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env={**os.environ, **environment}, check=False
    )


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_is_fast(option: str) -> None:
    """Ten seconds of imports before a usage line."""
    code = (
        "import sys\nfrom hf_distill.cli import main\n"
        f"try: main(['{option}'])\nexcept SystemExit as stop: assert stop.code == 0\n"
        "print({'torch', 'transformers', 'numpy', 'pydantic', 'ruamel'} & set(sys.modules))"
    )
    done = _python("-c", code, PYTHONPATH=str(ROOT))
    assert done.stdout.splitlines()[-1] == "set()", done.stderr
    assert ("section.key=value" if option == "--help" else __version__) in done.stdout


@pytest.mark.parametrize("command", [["--check"], [], ["cache"]])
def test_paths_that_are_not_there_are_told_before_anything_heavy_is_imported(command: list[str]) -> None:
    """Whoever mistypes four paths waits five seconds of imports, four times, to hear of them one after the other."""
    words = [*command, "r.yaml"] if command == ["cache"] else ["r.yaml", *command]
    words += ["data.path=y.csv", "teacher.model=./big", "student.model=./small", "tokenizer=~/no/words"]
    code = (
        f"import sys\nfrom hf_distill.cli import main\nassert main({words}) == 2\n"
        "print({'transformers', 'datasets', 'pandas', 'huggingface_hub'} & set(sys.modules))"
    )
    done = _python("-c", code, PYTHONPATH=str(ROOT))
    assert done.stdout == "set()\n", done.stderr
    looked = f"(looked from {Path.cwd()})."
    assert done.stderr.splitlines() == [
        f"override 'teacher.model=./big': teacher.model: no such file or directory: './big' {looked}",
        f"override 'student.model=./small': student.model: no such file or directory: './small' {looked}",
        f"override 'tokenizer=~/no/words': tokenizer: no such file or directory: '~/no/words' {looked}",
        f"override 'data.path=y.csv': data.path: no such file or directory: 'y.csv' {looked}",
    ]


def test_the_script_is_the_command() -> None:
    """`accelerate launch` starts the script; its status must be that of the command."""
    Path("r.yaml").write_text("task: [a")
    done = _python(str(SCRIPT), "r.yaml", PYTHONPATH=str(ROOT))
    assert done.returncode == 2
    assert done.stderr == "r.yaml:1: not valid YAML: the '[' opened here is not closed, or a comma is missing in it.\n"
    assert done.stdout == ""


def test_the_package_is_the_command() -> None:
    """`python -m hf_distill` is what people try where a script directory is not on their PATH."""
    Path("r.yaml").write_text("task: [a")
    done = _python("-m", "hf_distill", "r.yaml", PYTHONPATH=str(ROOT))
    assert done.returncode == 2
    assert done.stderr == "r.yaml:1: not valid YAML: the '[' opened here is not closed, or a comma is missing in it.\n"


def test_the_script_without_the_package() -> None:
    """The first thing that happens to somebody who cloned and did not install."""
    done = _python("-S", "-E", str(SCRIPT), "r.yaml")  # -S: no site-packages
    assert done.returncode == 1
    assert done.stderr == "hf_distill is not installed in this Python. In the clone: pip install -e .\n"


def test_a_missing_dependency_is_not_taken_for_a_missing_package() -> None:
    """Told to install what is installed, people give up."""
    code = f"import sys, runpy; sys.path.insert(0, {str(ROOT)!r}); sys.argv = ['x', 'r.yaml']\n"
    code += f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    done = _python("-S", "-E", "-c", code)
    assert done.returncode == 1
    assert "ModuleNotFoundError: No module named" in done.stderr
    assert "not installed in this Python" not in done.stderr
