"""Raw examples: where they are, how files are read, and the splits of a run."""

from hf_distill.data.loading import apart, by_length, check_data, column, load_splits, peek, with_length

__all__ = ["apart", "by_length", "check_data", "column", "load_splits", "peek", "with_length"]
