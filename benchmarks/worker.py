"""One run of one variant, in a process of its own: `python -m benchmarks.worker BENCHMARK VARIANT`.

Prints one line of JSON: processor seconds, rise of the peak memory, and what the variant computed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from contextlib import redirect_stdout
from dataclasses import asdict
from importlib import import_module
from typing import Any

BENCHMARKS = (
    "loss",
    "step",
    "on_policy",
    "rollouts",
    "teacher",
    "prompted",
    "classification",
    "epochs",
    "lora",
    "tokens",
    "rows",
)


def suite(benchmark: str) -> Any:
    """Return the module of a benchmark."""
    return import_module(f"benchmarks.{benchmark}")


def run(benchmark: str, variant: str, settings: Any) -> dict[str, Any]:
    """Run a variant once."""
    import torch

    torch.set_num_threads(1)
    with redirect_stdout(sys.stderr):  # trainers print
        return asdict(suite(benchmark).VARIANTS[variant].run(settings))


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("benchmark", choices=BENCHMARKS)
    parser.add_argument("variant")
    parser.add_argument("--quick", action="store_true", help="sizes that take no time")
    parser.add_argument("--settings", type=json.loads, default={}, help="other sizes, as JSON")
    options = parser.parse_args()
    made = suite(options.benchmark).Settings
    settings = made.quick() if options.quick else made(**options.settings)
    print(json.dumps(run(options.benchmark, options.variant, settings)))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
