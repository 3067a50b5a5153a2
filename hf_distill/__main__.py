"""`python -m hf_distill` does what `hf-distill` does."""

from __future__ import annotations

import sys

from hf_distill.cli import main

if __name__ == "__main__":
    sys.exit(main())
