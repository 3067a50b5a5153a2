"""Select the logits of a batch that count, and their labels: the input of every objective on logits."""

from hf_distill.rows.base import Places, RowLayout, Rows, SparseRows, Unit
from hf_distill.rows.examples import ExampleRows
from hf_distill.rows.tokens import TokenRows

__all__ = ["ExampleRows", "Places", "RowLayout", "Rows", "SparseRows", "TokenRows", "Unit"]
