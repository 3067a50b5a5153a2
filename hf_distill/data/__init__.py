"""Raw examples: where they are, how files are read, and the splits of a run."""

from hf_distill.data.loading import by_length, check_data, column, load_splits, peek

__all__ = ["by_length", "check_data", "column", "load_splits", "peek"]
