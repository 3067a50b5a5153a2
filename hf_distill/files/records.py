"""Small JSON files with a checksum of their own, so that damage is noticed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_distill.files.atomic import write_atomic
from hf_distill.files.fingerprint import fingerprint

_SUM = "sum"


def write_record(file: Path, content: Mapping[str, Any]) -> None:
    """Write a mapping with its checksum as JSON, atomically and forced to disk.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "_record.json"
    >>> write_record(file, {"finished": True})
    >>> read_record(file)
    {'finished': True}
    >>> file.write_text(file.read_text().replace("true", "null")) > 0, read_record(file)
    (True, None)
    """
    plain = json.loads(json.dumps(content))
    write_atomic(file, json.dumps({**plain, _SUM: fingerprint(plain)}))


def read_record(file: Path) -> dict[str, Any] | None:
    """Return the mapping that `write_record` wrote; None if the file is missing, changed or damaged.

    Records of an older version have no checksum and are not checked.
    """
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(content, dict):
        return None
    found = content.pop(_SUM, None)
    return content if found is None or found == fingerprint(content) else None
