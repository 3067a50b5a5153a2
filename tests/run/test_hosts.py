"""Two hosts, for which two launchers on this machine stand, each with one process and a home of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import engines
import pytest
from forked import free_port
from runs import REPO, WriteRecipe, same, weights

LAUNCHERS = ("WORLD_SIZE", "RANK", "LOCAL_", "MASTER_", "TORCHELASTIC_", "ACCELERATE_", "HF_")
Command = Callable[[int, int], Sequence[str]]


def torchrun(host: int, port: int) -> Sequence[str]:
    return (
        "-m", "torch.distributed.run", "--nnodes", "2", "--node_rank", str(host), "--nproc_per_node", "1",
        "--master_addr", "127.0.0.1", "--master_port", str(port),
    )  # fmt: skip


def accelerate(host: int, port: int) -> Sequence[str]:
    return (
        "-m", "accelerate.commands.launch", "--config_file", str(REPO / "recipes" / "accelerate" / "multi_node.yaml"),
        "--machine_rank", str(host), "--main_process_port", str(port),
    )  # fmt: skip


def on_two_hosts(command: Command, recipe: Path, directory: Path, *overrides: Sequence[str]) -> list[tuple[int, str]]:
    """Return the exit status of each launcher and what its host printed.

    Args:
        command: The launcher.
        recipe: The recipe.
        directory: Where each host has its home.
        overrides: Further words for each host.
    """
    port, started = free_port(), []
    for host in range(2):
        home = directory / f"host{host}"
        clean = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHERS)}
        clean |= {
            "HOME": str(home), "HF_HOME": str(home / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(REPO), "GLOO_SOCKET_IFNAME": "lo",
        }  # fmt: skip
        home.mkdir(parents=True)
        own = overrides[host] if overrides else ()
        words = (*command(host, port), str(REPO / "scripts" / "distill.py"), str(recipe), *own)
        with (directory / f"{host}.log").open("w") as log:
            process = subprocess.Popen([sys.executable, *words], env=clean, stdout=log, stderr=log, cwd=directory)
        started.append(process)
    try:
        statuses = [one.wait(200) for one in started]
    finally:
        for one in started:
            one.kill()
    return [(status, (directory / f"{host}.log").read_text()) for host, status in enumerate(statuses)]


def losses(report: Any) -> dict[str, list[float]]:
    return {name: [one["loss"] for one in log if "loss" in one] for name, log in report["history"].items()}


@pytest.mark.slow
@pytest.mark.parametrize("command", [torchrun, accelerate])
def test_two_hosts_are_two_processes(
    command: Command, write_recipe: WriteRecipe, make_model: Any, tmp_path: Path
) -> None:
    """A second host that found other files, trained on its own, or wrote a report too would not be seen in the report
    of the first."""
    bare = {"name": "finetuned", "model": str(make_model("bert-bare", layers=2)), "training": {"max_steps": 4}}
    teacher = {"name": "cached", "teacher": bare, "path": str(tmp_path / "targets")}
    recipe = write_recipe(
        teacher=teacher, student={"name": "copy_layers", "layers": 1}, report={"latency": False, "baseline": True}
    )
    results = on_two_hosts(command, recipe, tmp_path / "hosts")
    assert [status for status, _ in results] == [0, 0], results
    logs = [log for _, log in results]
    assert ["report.html" in log for log in logs] == [True, False]
    out = tmp_path / "out"
    hosts, report = weights(out), json.loads((out / "report.json").read_text())
    own = (f"training.output_dir={tmp_path / 'one'}", f"teacher.path={tmp_path / 'again'}")
    statuses = engines.command("ddp", recipe, *own, directory=tmp_path / "ddp")
    assert statuses == [0, 0]
    assert same(hosts, weights(tmp_path / "one"))
    other = json.loads((tmp_path / "one" / "report.json").read_text())
    assert report["student"]["metrics"] == other["student"]["metrics"]
    assert losses(report) == losses(other)


@pytest.mark.slow
def test_two_hosts_that_share_nothing(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    """The second would find no checkpoint of the first, and no student, after hours of training."""
    own = [[f"training.output_dir={tmp_path / 'hosts' / f'out{host}'}"] for host in range(2)]
    results = on_two_hosts(torchrun, write_recipe(), tmp_path / "hosts", *own)
    assert all(status == 1 for status, _ in results)
    for _, log in results:
        (line,) = {line for line in log.splitlines() if "output_dir:" in line}
        assert "name a directory that they share" in line


# What stands for SLURM on one machine: as many processes as tasks, which get the signals that srun gets.
SRUN = """
import os, signal, subprocess, sys
words = [word for at, word in enumerate(sys.argv[1:]) if at or not word.startswith("--")]
tasks = range(int(os.environ["SLURM_NTASKS"]))
every = [
    subprocess.Popen(words, env={**os.environ, "SLURM_PROCID": str(one), "SLURM_LOCALID": str(one)}) for one in tasks
]
for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, lambda number, _: [one.send_signal(number) for one in every])
sys.exit(max(abs(one.wait()) for one in every))
"""


def submit(directory: Path, *words: str | Path) -> subprocess.Popen[str]:
    """Start the script of recipes/ as SLURM does, with two tasks."""
    tools = directory / "tools"
    tools.mkdir(parents=True)
    for name, text in {
        "srun": f"#!{sys.executable}\n{SRUN}",
        "scontrol": f'#!/bin/bash\nif [ "$1" = show ]; then echo 127.0.0.1; else echo "$@" >> {directory}/asked; fi\n',
        "hf-distill": f'#!/bin/bash\nexec {sys.executable} {REPO / "scripts" / "distill.py"} "$@"\n',
    }.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    clean = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHERS)}
    clean |= {"SLURM_JOB_NODELIST": "here", "SLURM_JOB_ID": str(free_port()), "SLURM_NTASKS": "2"}
    clean |= {"SLURM_JOB_NUM_NODES": "1", "PATH": f"{tools}:{clean['PATH']}", "PYTHONPATH": str(REPO)}
    with (directory / "log").open("w") as log:
        return subprocess.Popen(
            ["bash", str(REPO / "recipes" / "slurm.sh"), *map(str, words)],
            env={**clean, "OMP_NUM_THREADS": "1"}, stdout=log, stderr=log, text=True,
        )  # fmt: skip


@pytest.mark.slow
def test_the_script_for_slurm(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    """A script that starts every task as the first of one process trains as often as there are tasks; one that loses
    the signal of the time limit loses the job."""
    recipe, out = write_recipe(), tmp_path / "out"
    long = ("training.num_train_epochs=500", "training.save_strategy=steps", "training.save_steps=4")
    job = submit(tmp_path / "long", recipe, *long, f"training.output_dir={tmp_path / 'long' / 'out'}")
    deadline = time.monotonic() + 120
    while not list((tmp_path / "long" / "out").glob("checkpoint-*/_files.json")):
        assert job.poll() is None, (tmp_path / "long" / "log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(60) != 0
    assert (tmp_path / "long" / "asked").read_text().startswith("requeue ")
    assert submit(tmp_path / "short", recipe).wait(200) == 0, (tmp_path / "short" / "log").read_text()
    assert not (tmp_path / "short" / "asked").exists()
    assert (tmp_path / "short" / "log").read_text().count("report.html") == 1
    assert json.loads((out / "report.json").read_text())["settings"]["processes"] == 2
