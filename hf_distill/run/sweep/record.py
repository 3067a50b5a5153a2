"""`sweep.json`: the settings of a sweep and what became of them, for its next start and for whoever reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_distill.errors import UserError
from hf_distill.files.atomic import is_left_over, write_atomic
from hf_distill.files.lock import FILE as LOCK

RECORD = "sweep.json"
PAGE = "sweep.html"
BY = "hf_distill sweep"
TEACHERS, BASELINES = "_teacher", "_baselines"
_OURS = {RECORD, PAGE, LOCK, TEACHERS, BASELINES}


def check_place(directory: Path) -> None:
    """Refuse a directory that is not one of a sweep. Writes nothing.

    Raises:
        UserError: It is a file, or holds something else.
    """
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{directory} is a file; wanted a directory for the sweep (--into DIR).")
    present = {one.name for one in directory.iterdir() if not is_left_over(one.name)} if directory.is_dir() else set()
    if present - _OURS and read(directory) is None:
        raise UserError(f"{directory} is not empty and holds no sweep. Choose another directory: --into DIR.")


def read(directory: Path) -> list[dict[str, Any]] | None:
    """Return the entries of the settings of earlier starts, `directory`, `values`, `state` ...; None without a record.

    A damaged record counts as none of its settings: those of a grid are found by their directories.
    """
    try:
        content = json.loads((directory / RECORD).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return []
    if not isinstance(content, dict) or content.get("by") != BY or not isinstance(content.get("settings"), list):
        return []
    return [one for one in content["settings"] if isinstance(one, dict) and isinstance(one.get("values"), dict)]


def write(directory: Path, content: Mapping[str, Any], earlier: Sequence[Mapping[str, Any]]) -> None:
    """Write the record of a sweep.

    Args:
        directory: Directory of the sweep.
        content: What `report.sweep.page.to_plain` returns.
        earlier: Entries of other settings, which stay in the record.
    """
    known = {one["directory"] for one in content["settings"]}
    others = [one for one in earlier if one.get("directory") not in known]
    whole = {"by": BY, **content, "settings": [*content["settings"], *others]}
    text = json.dumps(whole, indent=2, allow_nan=False, ensure_ascii=False)
    write_atomic(directory / RECORD, f"{text}\n")
