"""Metrics: whether they fit what is predicted, and what they say of it."""

from hf_distill.metrics.score import check, score

__all__ = ["check", "score"]
