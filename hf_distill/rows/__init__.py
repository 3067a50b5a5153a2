"""Which logits of a batch count, and what their labels are: all that objectives on logits ever see."""

from hf_distill.rows.base import Places, RowLayout, Rows, SparseRows, Unit
from hf_distill.rows.examples import ExampleRows
from hf_distill.rows.tokens import TokenRows

__all__ = ["ExampleRows", "Places", "RowLayout", "Rows", "SparseRows", "TokenRows", "Unit"]
