"""Distil a model: `python scripts/distill.py RECIPE.yaml [section.key=value ...]`, or with `accelerate launch`."""

from __future__ import annotations

import sys

try:
    from hf_distill.cli import main
except ModuleNotFoundError as error:
    if error.name != "hf_distill":
        raise
    sys.exit("hf_distill is not installed in this Python. In the clone: pip install -e .")

if __name__ == "__main__":
    sys.exit(main())
