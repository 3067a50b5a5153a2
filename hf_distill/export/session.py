"""An ONNX graph in onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_distill.export.base import Session

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hf_distill.export.base import Arrays


class OnnxSession(Session):
    """A graph in onnxruntime, on the CPU.

    Args:
        file: The graph.
        threads: Number of threads; None for one on each core.

    Attributes:
        shapes: Name of each input -> its shape, with names for free axes.
    """

    def __init__(self, file: Path, threads: int | None = None) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self.shapes: dict[str, list[Any]] = {one.name: one.shape for one in self._session.get_inputs()}
        self.inputs = tuple(self.shapes)
        self._outputs = [one.name for one in self._session.get_outputs()]

    def __call__(self, batch: Arrays) -> dict[str, NDArray[Any]]:
        """Return the outputs by name; token types that are not given are 0."""
        import numpy as np

        zeros = np.zeros(batch["input_ids"].shape, np.int64)
        return self.run({name: np.asarray(batch.get(name, zeros), np.int64) for name in self.inputs})

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return the outputs by name; every input must be given."""
        return dict(zip(self._outputs, self._session.run(self._outputs, dict(feeds)), strict=True))
