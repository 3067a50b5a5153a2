"""Metrics: check that they fit the task's predictions, and compute them."""

from hf_distill.metrics.score import check, score

__all__ = ["check", "score"]
