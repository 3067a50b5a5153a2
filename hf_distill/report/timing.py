"""Times of forward passes, as `report.json` has them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """Repeated forward passes over one batch.

    Attributes:
        median_ms: Median of the time of a pass, in milliseconds.
        p90_ms: 90th percentile, in milliseconds.
        repeats: Number of timed passes.
        batch_size: Examples in the batch.
        sequence_length: Tokens per example, padding included; None for inputs without tokens.
    """

    median_ms: float
    p90_ms: float
    repeats: int
    batch_size: int
    sequence_length: int | None


@dataclass(frozen=True)
class Latency:
    """The speed of one model.

    Attributes:
        single: Timing of one example at a time (the latency for a user).
        batch: Timing of a full batch (the cost of serving).
        device: Product name of the device.
        dtype: Precision of the weights that are not quantized.
        threads: Number of threads of torch's CPU operators.
    """

    single: Timing
    batch: Timing
    device: str
    dtype: str
    threads: int

    @property
    def throughput(self) -> float:
        """Examples per second, from the median time of a full batch."""
        return self.batch.batch_size / self.batch.median_ms * 1000
