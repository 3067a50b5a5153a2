"""Processes and threads: `hf_distill/run/launch.py`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from accelerate import DistributedType, PartialState

from hf_distill.errors import UserError
from hf_distill.run import launch
from hf_distill.run.launch import SPINS, check_launch, spin_little, use_all_cores, use_cpu_if_needed

BIN = Path(sys.executable).parent
ACCELERATE = [sys.executable, str(BIN / "accelerate"), "launch"]
MULTI = ["--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
MULTI += ["--dynamo_backend", "no", "--main_process_port", "0"]

# What a run does at its start, with the result in one file a process. The script is called distill.py, as ours is.
SCRIPT = """
import json, os, sys
from hf_distill.errors import UserError
from hf_distill.run.launch import check_launch, use_all_cores, use_cpu_if_needed
import torch
result = {"line": use_all_cores(), "threads": torch.get_num_threads()}
try:
    check_launch()
    if "plain" not in sys.argv:
        from transformers import TrainingArguments
        training = {} if "no_cpu" in sys.argv else use_cpu_if_needed({"bf16": True})
        args = TrainingArguments(sys.argv[1] + ".out", **training)
        check_launch()
        result["world"] = args.world_size
except UserError as error:
    result["error"] = str(error)
with open(f"{sys.argv[1]}.{os.environ.get('RANK', '0')}", "w") as file:
    json.dump(result, file)
os._exit(0)  # gloo now and then aborts at exit, after all is done
"""


def _start(tmp_path: Path, command: list[str], *arguments: str, **environment: str) -> list[dict[str, object]]:
    """Start the script under a launcher; return one result a process."""
    script = tmp_path / "distill.py"
    script.write_text(SCRIPT)
    launchers = ("ACCELERATE_", "OMP_", "MKL_", "WORLD_SIZE", "RANK", "LOCAL_", "MASTER_", "TORCHELASTIC_")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(launchers)}
    clean |= {"PYTHONPATH": str(Path(__file__).parents[2]), "HF_HOME": str(tmp_path / "home")} | environment
    done = subprocess.run(
        [*command, str(script), str(tmp_path / "result"), *arguments],
        env=clean,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    results = sorted(tmp_path.glob("result.[0-9]"))
    assert results, done.stderr
    return [json.loads(file.read_text()) for file in results]


def test_accelerate_cpu_starts_one_process_of_two(tmp_path):
    """`--cpu --num_processes 2` runs one process without a word: half the batch size that the recipe promises."""
    (result,) = _start(tmp_path, [*ACCELERATE, "--cpu", "--num_processes", "2"], "plain")
    error = result["error"]
    assert "2 processes were asked for and 1 runs: the `--cpu` of accelerate starts one" in error
    assert "accelerate launch --multi_gpu --num_processes 2 --num_machines 1" in error
    assert error.endswith("result plain training.use_cpu=true")


@pytest.mark.slow
def test_config_file_with_multi_cpu_starts_one_process(tmp_path):
    """The same from `distributed_type: MULTI_CPU` in a config file, where the command line names no number."""
    config = tmp_path / "config.yaml"
    config.write_text("distributed_type: MULTI_CPU\nnum_processes: 3\nuse_cpu: true\nnum_machines: 1\n")
    (result,) = _start(tmp_path, [*ACCELERATE, "--config_file", str(config)], "plain")
    assert "several processes were asked for and 1 runs" in result["error"]
    assert "--multi_gpu --num_processes N " in result["error"]


@pytest.mark.slow
def test_the_advised_command_starts_two_processes(tmp_path):
    """Advice that does not work is worse than none."""
    assert [result.get("world") for result in _start(tmp_path, [*ACCELERATE, *MULTI])] == [2, 2]
    for file in tmp_path.glob("result.[0-9]"):
        file.unlink()
    results = _start(
        tmp_path, [*ACCELERATE, *MULTI], "no_cpu", ACCELERATE_USE_CPU="true"
    )  # what other scripts are told
    assert [result.get("world") for result in results] == [2, 2]


@pytest.mark.slow
@pytest.mark.skipif(torch.accelerator.is_available(), reason="the default device is then an accelerator")
def test_torchrun_without_a_gpu(tmp_path):
    """Without `use_cpu` both processes train everything and overwrite each other; with it they are two of two."""
    torchrun = [sys.executable, str(BIN / "torchrun"), "--nproc_per_node", "2", "--standalone"]
    assert [result.get("world") for result in _start(tmp_path, torchrun)] == [2, 2]
    for file in tmp_path.glob("result.[0-9]"):
        file.unlink()
    results = _start(tmp_path, torchrun, "no_cpu")
    assert all("2 processes were started and each runs alone" in result["error"] for result in results)


@pytest.mark.slow
@pytest.mark.skipif(torch.accelerator.is_available() or launch._cores() < 2, reason="a CPU machine with idle cores")
def test_plain_accelerate_launch_uses_all_cores(tmp_path):
    """accelerate sets `OMP_NUM_THREADS=1` there: half the speed on two cores, a thirtieth on thirty."""
    (result,) = _start(tmp_path, ACCELERATE, "plain")
    assert result["threads"] == launch._cores()
    assert "OMP_NUM_THREADS=1 by default" in result["line"]
    (result,) = _start(tmp_path, ACCELERATE, "plain", OMP_NUM_THREADS="1")
    assert (result["threads"], result["line"]) == (1, None)


@pytest.mark.skipif(sys.platform == "win32", reason="a process keeps the number of a parent that is gone")
@pytest.mark.parametrize("launched", [True, False])
def test_a_run_ends_with_its_launcher(launched, tmp_path):
    """`accelerate launch` passes no SIGTERM on: a container that ended it trained on unseen, and was killed later."""
    run = tmp_path / "run.py"
    run.write_text(
        "import signal, sys, time\nfrom pathlib import Path\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(Path('told').write_text('')))\n"
        "from hf_distill.run.launch import end_with_launcher\n"
        "end_with_launcher()\nPath('ready').write_text('')\n"
        "while Path('wait').exists(): time.sleep(0.05)\nPath('over').write_text('')\n"
    )
    # What accelerate does for one process; or a program among whose own variables there are such.
    parent = tmp_path / "parent.py"
    parent.write_text(
        "import os, subprocess, sys\n"
        f"subprocess.Popen([sys.executable, {str(run)!r}], env={{**os.environ, **{SIMPLE!r}}}).wait()\n"
    )
    (tmp_path / "wait").write_text("")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])} | ({} if launched else SIMPLE)
    environment.pop("WORLD_SIZE", None)
    process = subprocess.Popen([sys.executable, str(parent)], cwd=tmp_path, env=environment)

    def appears(*names: str) -> list[str]:
        for _ in range(1200):
            if found := [name for name in names if (tmp_path / name).exists()]:
                return found
            time.sleep(0.05)
        raise AssertionError(f"none of {names} within a minute")

    appears("ready")
    process.terminate()
    process.wait(60)
    if not launched:  # a program of its own, whose end may be meant to leave the run behind
        (tmp_path / "wait").unlink()
    assert appears("told", "over") == ["told" if launched else "over"]


@pytest.mark.skipif(sys.platform == "win32", reason="a process keeps the number of a parent that is gone")
@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_all_processes_end_with_a_launcher_that_is_killed(launcher, tmp_path):
    """Both ranks of a killed launcher trained on to the end, and wrote where the next run was writing."""
    rank = tmp_path / "rank.py"
    rank.write_text(
        "import os, time\nfrom pathlib import Path\nfrom hf_distill.run.launch import end_with_launcher\n"
        "end_with_launcher()\nready = Path(f\"ready.{os.environ['RANK']}\")\nready.write_text(str(os.getpid()))\n"
        "time.sleep(120)\n"
    )
    torchrun = [sys.executable, str(BIN / "torchrun"), "--nproc_per_node", "2", "--standalone"]
    environment = {key: value for key, value in os.environ.items() if key not in ("WORLD_SIZE", "RANK")}
    environment |= {"PYTHONPATH": str(Path(__file__).parents[2]), "ACCELERATE_USE_CPU": "true"}
    command = [*(torchrun if launcher == "torchrun" else [*ACCELERATE, *MULTI]), str(rank)]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("ready.*"))) < 2:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(0.1)  # the number in the file
    ranks = [psutil.Process(int(file.read_text())) for file in tmp_path.glob("ready.*")]
    process.kill()
    process.wait(60)
    _, alive = psutil.wait_procs(ranks, timeout=10)
    for one in alive:
        one.kill()
    assert alive == []


# --- the same decisions, without starting anything ----------------------------------------------------------------


@pytest.fixture
def started_by(monkeypatch):
    """Return a function that imitates a parent process and the environment that it gives its child."""

    def imitate(words: list[str], parent: dict[str, str] | None = None, **environment: str) -> None:
        started = SimpleNamespace(cmdline=lambda: words, environ=lambda: parent or {})
        monkeypatch.setattr(psutil, "Process", lambda: SimpleNamespace(parent=lambda: started))
        for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "OMP_NUM_THREADS", "MASTER_PORT", *ACCELERATE_SETS):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(PartialState, "_shared_state", {})
        monkeypatch.setattr(launch, "_cores", lambda: 8)
        monkeypatch.setattr(launch, "_has_accelerator", lambda: False)

    return imitate


SIMPLE = {"ACCELERATE_DYNAMO_BACKEND": "NO", "MASTER_PORT": "29500"}
TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "LOCAL_WORLD_SIZE": "2"}
ACCELERATE_SETS = ("ACCELERATE_DYNAMO_BACKEND", "ACCELERATE_USE_CPU", "TORCHELASTIC_RUN_ID")


@pytest.mark.parametrize(
    "words",
    [
        ["python", "/x/accelerate", "launch", "--cpu", "--num_processes", "4", "s.py", "--num_processes", "1"],
        ["python", "/x/accelerate-launch", "--cpu", "--num-processes=4", "s.py"],
        ["python", "-m", "accelerate.commands.launch", "--cpu", "--num_processes=4", "s.py"],
        ["python", "-X", "dev", "/x/accelerate", "launch", "--cpu", "--num_processes", "4", "s.py"],
    ],
)
def test_every_spelling_of_the_launch_is_read(started_by, words):
    """A spelling that is not understood would let one process pass for four."""
    started_by(words, **SIMPLE)
    with pytest.raises(UserError, match="4 processes were asked for"):
        check_launch()


@pytest.mark.parametrize(
    ("words", "parent", "environment"),
    [
        (["python", "/x/accelerate", "launch", "s.py"], {}, {"ACCELERATE_DYNAMO_BACKEND": "NO"}),
        (["python", "/x/accelerate", "launch", "s.py"], {"MASTER_PORT": "1234"}, SIMPLE),
        (["python", "/x/accelerate", "launch", "--num_processes", "1", "s.py"], {}, SIMPLE),
        (["python", "s.py", "accelerate", "launch", "--num_processes", "4"], SIMPLE, SIMPLE),
        (["bash"], {}, {"MASTER_PORT": "1234"}),
        (["python", "/x/accelerate", "launch", *MULTI, "s.py"], {}, {**SIMPLE, "WORLD_SIZE": "2"}),
        (["mpirun", "-n", "4", "python", "s.py"], SIMPLE, {**SIMPLE, "PMI_SIZE": "4"}),
    ],
)
def test_right_launches_pass(started_by, words, parent, environment):
    """A variable left over in a cluster's environment must not stop a run of one process."""
    started_by(words, parent, **environment)
    check_launch()


def test_launch_on_a_machine_with_too_few_accelerators(started_by, monkeypatch):
    """Two processes on one GPU would be advised, and fail in NCCL."""
    started_by(["python", "/x/accelerate", "launch", "--num_processes", "2", "s.py"], **SIMPLE)
    monkeypatch.setattr(launch, "_has_accelerator", lambda: True)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)
    with pytest.raises(UserError, match=r"without `--multi_gpu`\. This machine has 1 accelerator"):
        check_launch()


def test_processes_that_do_not_know_of_each_other(started_by, monkeypatch):
    """`WORLD_SIZE=2` beside an accelerate that counts one process: two trainings of everything."""
    started_by(["bash"], WORLD_SIZE="2")
    check_launch()  # before TrainingArguments nothing is known, and nothing may be created
    assert PartialState._shared_state == {}
    monkeypatch.setattr(PartialState, "_shared_state", {"_cpu": True, "num_processes": 1, "device": "cpu"})
    with pytest.raises(UserError, match="each runs alone"):
        check_launch()
    monkeypatch.setitem(PartialState._shared_state, "num_processes", 2)
    check_launch()


@pytest.mark.parametrize("variable", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"])
def test_an_engine_that_accelerate_leaves_out(started_by, monkeypatch, variable):
    """FSDP on CPUs is DDP, without a word: the student that was to be sharded does not fit, or is trained otherwise."""
    started_by(["bash"], WORLD_SIZE="2", **{variable: "true"})
    state = {"_cpu": True, "num_processes": 2, "device": torch.device("cpu"), "distributed_type": DistributedType.NO}
    monkeypatch.setattr(PartialState, "_shared_state", state)
    with pytest.raises(UserError, match="was asked for, and accelerate silently uses DDP"):
        check_launch()
    state |= {"_cpu": False, "distributed_type": DistributedType.MULTI_GPU}
    check_launch()


def test_every_process_loads_the_teacher(monkeypatch):
    """By accelerate's default only the first process loads weights under FSDP, and nobody sends a teacher's."""
    monkeypatch.delenv("FSDP_CPU_RAM_EFFICIENT_LOADING", raising=False)
    assert launch.load_in_every_process() is None
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    assert "every process loads" in str(launch.load_in_every_process())
    assert os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "false"


@pytest.fixture
def threads():
    """Return torch to its number of threads afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(
    ("words", "parent", "environment", "expected"),
    [
        (["python", "/x/accelerate", "launch", "s.py"], {}, {"ACCELERATE_DYNAMO_BACKEND": "NO"}, 8),
        (["python", "/x/torchrun", "--nproc_per_node", "2", "s.py"], {}, TORCHRUN, 4),
        (["python", "-m", "torch.distributed.run", "s.py"], {}, {**TORCHRUN, "LOCAL_WORLD_SIZE": "16"}, 1),
        (["python", "/x/accelerate", "launch", "s.py"], {"OMP_NUM_THREADS": "1"}, SIMPLE, 1),
        (["python", "/x/accelerate", "launch", "--num_cpu_threads_per_process", "1", "s.py"], {}, SIMPLE, 1),
        (["bash", "run.sh"], SIMPLE, SIMPLE, 1),
        (["bash"], {}, {}, 1),
    ],
)
def test_only_the_launchers_default_is_undone(started_by, words, parent, environment, expected):
    """Every core at half speed is silent; so is a user's own choice of threads that is overruled."""
    started_by(words, parent, OMP_NUM_THREADS="1", **environment)
    line = use_all_cores()
    assert torch.get_num_threads() == expected
    assert (line is not None) == (expected > 1)


@pytest.mark.usefixtures("threads")
def test_threads_are_left_alone_beside_an_accelerator(started_by, monkeypatch):
    """On a GPU machine one thread a process is a good default."""
    started_by(["python", "/x/accelerate", "launch", "s.py"], OMP_NUM_THREADS="1", **SIMPLE)
    monkeypatch.setattr(launch, "_has_accelerator", lambda: True)
    assert use_all_cores() is None
    assert torch.get_num_threads() == 1


def test_cpu_is_asked_for_where_there_is_nothing_else(monkeypatch):
    """`bf16: true` would raise on a CPU machine, and `torchrun` start duplicates; on a GPU machine nothing changes."""
    training = {"bf16": True, "use_cpu": False}
    monkeypatch.setattr(launch, "_has_accelerator", lambda: False)
    assert use_cpu_if_needed(training) == {"bf16": True, "use_cpu": True}
    assert training == {"bf16": True, "use_cpu": False}
    monkeypatch.setattr(launch, "_has_accelerator", lambda: True)
    assert use_cpu_if_needed(training) == training
    assert use_cpu_if_needed({"use_cpu": True}) == {"use_cpu": True}


@pytest.mark.parametrize("chosen", [{}, {"GOMP_SPINCOUNT": "5"}, {"OMP_WAIT_POLICY": "active"}])
def test_waiting_threads_sleep_soon_unless_the_user_chose(monkeypatch, chosen):
    """A run beside another program takes many times as long without; a user's own choice must not be overruled."""
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in chosen.items():
        monkeypatch.setenv(name, value)
    spin_little()
    assert os.environ.get("GOMP_SPINCOUNT") == (chosen.get("GOMP_SPINCOUNT") if chosen else SPINS)
    assert ("sleep soon" in str(launch.waiting())) == (not chosen)


@pytest.mark.skipif(sys.platform != "linux", reason="the OpenMP library of other systems has other settings")
def test_the_setting_comes_before_the_library_reads_it():
    """Set after torch is imported it would change nothing, in silence; the library itself is asked."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    clean |= {"OMP_DISPLAY_ENV": "verbose", "PYTHONPATH": str(Path(__file__).parents[2])}
    code = "from hf_distill.cli import main\nmain(['missing.yaml'])\nimport torch"
    done = subprocess.run([sys.executable, "-c", code], env=clean, capture_output=True, text=True, check=False)
    assert f"GOMP_SPINCOUNT = '{SPINS}'" in done.stderr
