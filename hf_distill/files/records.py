"""Small JSON files that vouch for others, and know when they were damaged themselves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_distill.files.atomic import write_atomic
from hf_distill.files.fingerprint import fingerprint

_SUM = "sum"


def write_record(file: Path, content: Mapping[str, Any]) -> None:
    """Write a mapping with its own checksum, whole or not at all, forced to disk.

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
    """Return what `write_record` wrote; None where it is not there or not as it was written.

    Records of the version before have no checksum, and are taken as they are.
    """
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(content, dict):
        return None
    found = content.pop(_SUM, None)
    return content if found is None or found == fingerprint(content) else None
