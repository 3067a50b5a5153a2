"""The finished student in other formats: how far its outputs are from PyTorch's, how good, large and fast it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import SkipValidation

from hf_distill.report.timing import Latency

# Name of the student itself in the list of exports, measured like them.
PYTORCH = "pytorch"


@dataclass(frozen=True)
class Edge:
    """An export in a process of its own that imports neither PyTorch nor Transformers.

    Attributes:
        load_ms: Time to load model and tokenizer, in milliseconds.
        text_ms: Median time of a text, tokenising included, one at a time, in milliseconds.
        peak_memory: Largest memory of the process, in bytes.
        texts: Number of texts.
        threads: Number of CPU threads.
        token_ms: Time of each further token that it writes, in milliseconds; None if it writes none.
    """

    load_ms: float
    text_ms: float
    peak_memory: int
    texts: int
    threads: int
    token_ms: float | None = None


@dataclass(frozen=True)
class WritingFigures:
    """The texts that a student writes in one format with its cache, each token the likeliest.

    Attributes:
        tokens_per_second: Number of tokens written in a second, one text at a time, the time to read its prompt
            included; None if speed was not measured.
        same: Share of the prompts behind which it writes the tokens that PyTorch writes; None for PyTorch itself.
        difference: Largest difference of a logit, token by token, from PyTorch's pass over the whole text; None for
            PyTorch itself.
        prompts: Number of prompts.
        tokens: Number of tokens written behind each.
        threads: Number of CPU threads.
    """

    tokens_per_second: float | None
    same: float | None
    difference: float | None
    prompts: int
    tokens: int
    threads: int


@dataclass(frozen=True)
class Exported:
    """The finished student in one format.

    Attributes:
        format: Name of the format; `pytorch` for the student itself, measured in float32 on the CPU like the others.
        directory: Where it is, from the directory of the report.
        weights: Type of the weights.
        bytes: Size of the files that hold the model, without tokenizer and configuration.
        rows: Number of eval rows behind the other figures; without data, of rows of random tokens.
        metrics: Name -> value on these rows; empty without labels.
        difference: Largest absolute difference of an output from PyTorch's; None for PyTorch itself.
        agreement: Share of the rows (tokens) for which PyTorch predicts the same; None for regression and vectors.
        latency: Speed; None if it was not measured.
        edge: Alone in a process; None if it was not measured.
        writing: The texts that it writes; None if it writes none.
        note: What else there is to know of the figures, a sentence; mostly empty.
        error: Standard error of the difference from PyTorch in the headline metric, from a paired bootstrap over these
            rows; None for PyTorch itself, and where it cannot be computed.
    """

    format: str
    directory: str
    weights: str
    bytes: int
    rows: int
    metrics: Mapping[str, Annotated[float, SkipValidation]] = field(default_factory=dict)
    difference: float | None = None
    agreement: float | None = None
    latency: Latency | None = None
    edge: Edge | None = None
    writing: WritingFigures | None = None
    note: str = ""
    error: float | None = None
