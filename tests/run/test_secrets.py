"""A whole run with tokens all around it: they are in no file that it leaves and in nothing that it says."""

from __future__ import annotations

from pathlib import Path

import pytest
from runs import WriteRecipe

from hf_distill.cli import main

SECRETS = {"HF_TOKEN": "hf_" + "Zq7" * 11, "SERVER_KEY": "sk-proj-" + "Qx4Z" * 8, "password": "pa55Word0fMine"}


def test_a_whole_run(
    write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Arguments of the training are pickled into every checkpoint, and a push publishes what lies in the directory."""
    for name in ("HF_TOKEN", "SERVER_KEY"):
        monkeypatch.setenv(name, SECRETS[name])
    path = write_recipe(
        training={
            "save_strategy": "steps",
            "save_steps": 2,
            "max_steps": 4,
            "run_name": f"https://me:{SECRETS['password']}@host/x {SECRETS['HF_TOKEN']}",
        },
        report={"latency": False, "baseline": True},
    )
    assert [main([str(path), "--check"]), main([str(path)])] == [0, 0]
    said = "".join(capfd.readouterr())
    files = [one for one in (tmp_path / "out").rglob("*") if one.is_file()]
    assert len(files) > 10
    for what, secret in SECRETS.items():
        assert secret not in said, what
        holding = [str(one.relative_to(tmp_path)) for one in files if secret.encode() in one.read_bytes()]
        assert holding == [], what
