"""Promise 1 under every engine: what `make parity` prints."""

from __future__ import annotations

from pathlib import Path

import pytest
from invariants.engine_table import compare


@pytest.mark.slow
def test_engines_find_what_one_process_finds(tmp_path: Path) -> None:
    """An engine that averages, gathers, saves or loads in another way trains another model, and nothing tells."""
    assert compare(tmp_path) == []
