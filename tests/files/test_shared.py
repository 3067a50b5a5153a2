"""Directories of the same name on machines that do not share them, for which folders of each process stand here."""

from __future__ import annotations

import os
from pathlib import Path

from forked import two_processes

from hf_distill import parallel
from hf_distill.errors import UserError
from hf_distill.files.shared import check_shared


def message(directory: Path, key: str) -> str:
    """Return what a run says; the states of accelerate belong to the process."""
    from accelerate import PartialState

    PartialState(cpu=True)
    try:
        check_shared(directory, key)
    except UserError as error:
        return f"{error.key}: {error}"
    return ""


def test_machines_that_share_a_directory_and_others(tmp_path: Path) -> None:
    """The second machine would find no checkpoint and no stored target of the first, and wait for it until a time limit
    of hours; every process has to stop, and the directory that is shared stays as it was."""

    def work() -> tuple[str, str]:
        own = tmp_path / os.environ["RANK"]
        own.mkdir()
        return message(tmp_path / "shared", "path"), message(own, "output_dir")

    (tmp_path / "shared").mkdir()
    results = two_processes(work, tmp_path / "results")
    assert [shared for shared, _ in results] == ["", ""]
    for _, told in results:
        assert told.startswith("output_dir: ")
        assert "of process 1 on" in told
    assert [*(tmp_path / "shared").iterdir()] == [*(tmp_path / "0").iterdir()] == []


def test_machines_with_other_files(tmp_path: Path) -> None:
    """A teacher that was copied to one machine and trained further on the other would teach two things at once."""

    def work() -> str:
        from accelerate import PartialState

        PartialState(cpu=True)
        parallel.check_equal({"the rows": "same"}, "Do this.")
        try:
            parallel.check_equal({"the rows": "same", "the weights": os.environ["RANK"]}, "Do this.")
        except UserError as error:
            return str(error)
        return ""

    for told in two_processes(work, tmp_path / "results"):
        assert told.startswith("the weights of process 1 on")
        assert told.endswith("Do this.")
