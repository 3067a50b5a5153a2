"""`hf-distill env`: what a report of a bug needs, without secrets, and also where something is broken."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

from hf_distill import __version__
from hf_distill.cli import main
from hf_distill.run.env import machine, packages
from hf_distill.run.env.variables import launcher

ROOT = Path(__file__).parents[2]
SECRETS = {
    "HF_TOKEN": "s3cret-1",
    "HUGGING_FACE_HUB_TOKEN": "s3cret-2",
    "HF_API_KEY": "s3cret-3",
    "HF_ENDPOINT": "https://s3cret-4@hub.example",
    "HTTPS_PROXY": "http://me:s3cret-5@proxy.example:3128",
    "ACCELERATE_LOG_PASSWORD": "s3cret-6",
}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of Hugging Face's libraries with nothing in it, and no launcher around."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    return tmp_path


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["env", *words]) == 0
    return capsys.readouterr().out


def test_versions_and_devices_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    """A report of a bug without the versions that matter costs a round of questions; one with wrong versions more."""
    text = printed(capsys)
    for version in (__version__, torch.__version__, f"transformers {transformers.__version__}", sys.version.split()[0]):
        assert version in text
    found = json.loads(printed(capsys, "--json"))
    assert found["packages"]["transformers"] == transformers.__version__
    assert found["torch"]["threads"] == torch.get_num_threads()
    assert found["launcher"] == "none"
    assert all("path" in one for one in found["directories"].values())
    assert max(map(len, text.splitlines())) < 200


@pytest.mark.parametrize("words", [[], ["--json"]], ids=["text", "json"])
def test_no_secret_is_printed(
    words: list[str], home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What this prints is pasted into public issues: a token in it is stolen within minutes."""
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    config = home / "accelerate" / "default_config.yaml"
    config.parent.mkdir()
    config.write_text("num_processes: 3\nsagemaker_api_key: s3cret-7\n  indented: hf_0123456789abcdefghijkl\n")
    text = printed(capsys, *words)
    assert "s3cret" not in text
    assert "hf_0123" not in text
    assert {name for name in SECRETS if name in text} == {*SECRETS}, "that they are set is worth knowing"
    for there in ("num_processes: 3", "sagemaker_api_key", "hub.example"):
        assert there in text


def test_a_broken_package_is_a_line(tmp_path: Path) -> None:
    """Who needs this command most has an installation that does not start: a traceback would be all they can paste."""
    for name, error in (("torch", "libcudart.so.13: cannot open"), ("numpy", "numpy.core\\nfailed")):
        (tmp_path / f"{name}.py").write_text(f"raise OSError('{error}')\n")
    done = subprocess.run(
        [sys.executable, "-m", "hf_distill", "env"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, "Traceback" in done.stdout + done.stderr) == (0, False)
    assert "torch cannot be imported: OSError: libcudart.so.13" in done.stdout
    assert "numpy cannot be imported: OSError: numpy.core failed" in done.stdout
    assert f"transformers {transformers.__version__}" in done.stdout


def test_what_does_not_fit_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """pip installs next to each other what does not go together, and only warns: the cause of many odd errors."""
    versions = {"transformers": "5.19.0", "datasets": None}
    monkeypatch.setattr(packages.metadata, "requires", lambda _: ["transformers<6,>=5.20", "datasets>=4.0"])
    monkeypatch.setattr(packages, "version", lambda name: versions.get(name, "1.0"))
    assert [line for line in packages.problems() if "imported" not in line] == [
        "transformers 5.19.0 is installed; hf_distill needs <6,>=5.20",
        "datasets is not installed; hf_distill needs datasets>=4.0",
    ]


def test_it_runs_where_nothing_is_installed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a clone that was never installed there is no metadata to ask."""

    def nothing(name: str) -> Any:
        raise packages.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(packages.metadata, "requires", nothing)
    monkeypatch.setattr(packages.metadata, "version", nothing)
    assert "transformers MISSING" in printed(capsys)


def test_accelerators_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """`cuda` alone does not say on which card a kernel fails; a driver that does not fit raises when it is asked."""
    accelerator = SimpleNamespace(
        is_available=lambda: True, device_count=lambda: 2, current_accelerator=lambda: torch.device("cuda")
    )
    card = SimpleNamespace(name="NVIDIA H200", total_memory=150.0e9, major=9, minor=0)
    fake: Any = SimpleNamespace(accelerator=accelerator, cuda=SimpleNamespace(get_device_properties=lambda _: card))
    monkeypatch.setattr(machine, "imported", lambda _: (fake, ""))
    found = machine.devices()
    assert found[1] == {"device": "cuda:1", "name": "NVIDIA H200", "memory": "150.0 GB", "capability": "9.0"}
    del accelerator.device_count
    assert "AttributeError" in machine.devices()[0]["error"]


def test_launchers(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Under a launcher every process would print the same, into one another."""
    assert launcher({"TORCHELASTIC_RUN_ID": "x", "ACCELERATE_DYNAMO_BACKEND": "no"}).startswith("torchrun")
    assert launcher({"ACCELERATE_DYNAMO_BACKEND": "no"}) == "accelerate launch"
    monkeypatch.setenv("RANK", "1")
    assert printed(capsys) == ""
