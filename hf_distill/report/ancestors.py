"""One model of a lineage, as `report.json` has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter


@dataclass(frozen=True, kw_only=True)
class Ancestor:
    """One model of a lineage.

    Attributes:
        name: Hub id, or the last component of its directory.
        on_hub: Whether the name is a Hub id.
        made: The recipe entry of a student in words, such as `copy_layers (layers 4)`; empty for the first teacher.
        parameters: Number of parameters; None if not known.
        bytes: Size of the parameters; None if not known.
        latency_ms: Median latency of one example; None if not measured.
        metric: Name of the headline metric of its run.
        value: Its value; None if not known.
        rows: Fingerprint of the eval rows on which it was measured; empty if not known.
    """

    name: str
    on_hub: bool = False
    made: str = ""
    parameters: int | None = None
    bytes: int | None = None
    latency_ms: float | None = None
    metric: str = ""
    value: float | None = None
    rows: str = ""


def read_lineage(content: Mapping[str, Any]) -> tuple[Ancestor, ...]:
    """Return the lineage in the content of a `report.json`; empty if it has none.

    Raises:
        ValidationError: It is not one.
    """
    given = content.get("lineage") or ()
    # Unknown keys of a later version are left out.
    known = [{key: value for key, value in one.items() if key in Ancestor.__dataclass_fields__} for one in given]
    return TypeAdapter(tuple[Ancestor, ...]).validate_python(known)
