"""What a teacher computed for a micro-batch that is trained on for several steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hf_distill.models.heads import Captured
from hf_distill.models.target_model import Targets

# Name of the entry in a batch.
HELD = "held_targets"


@dataclass
class Held:
    """A teacher's part of a micro-batch, computed at the first of its steps.

    It is small, since logits are not among it: what comes before the heads takes `tokens x width` numbers.

    Attributes:
        targets: What the source gave; None before the first step.
        captured: The inputs of the teachers' heads, by name.
    """

    targets: Targets | None = None
    captured: Mapping[str, Captured] = field(default_factory=dict)
