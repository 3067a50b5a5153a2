"""One model of a lineage, as `report.json` has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

# A report.json beside a teacher's weights is anybody's: what is in it must be fit to be shown.
Text = Annotated[str, Field(max_length=1000)]
Size = Annotated[int, Field(ge=0, lt=10**16)]
MOST = 200


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

    name: Annotated[Text, Field(min_length=1)]
    on_hub: bool = False
    made: Text = ""
    parameters: Size | None = None
    bytes: Size | None = None
    latency_ms: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    metric: Text = ""
    value: Annotated[float, Field(allow_inf_nan=False)] | None = None
    rows: Text = ""


def read_lineage(content: Mapping[str, Any]) -> tuple[Ancestor, ...]:
    """Return the lineage in the content of a `report.json`; empty if it has none.

    Raises:
        ValidationError: It is not one, or has more than 200 models.
    """
    given = content.get("lineage") or ()
    # Unknown keys of a later version are left out.
    known = [{key: value for key, value in one.items() if key in Ancestor.__dataclass_fields__} for one in given]
    return TypeAdapter(Annotated[tuple[Ancestor, ...], Field(max_length=MOST)]).validate_python(known)
