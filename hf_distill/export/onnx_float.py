"""`onnx`: the student as an ONNX graph with float32 weights."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from hf_distill.export.encoder import OnnxEncoder, optimised

if TYPE_CHECKING:
    from hf_distill.export.base import FinishedStudent
    from hf_distill.export.options import ExportOptions


class Onnx(OnnxEncoder):
    """The student as an ONNX graph with float32 weights."""

    name: ClassVar[str] = "onnx"
    exact: ClassVar[bool] = True

    def convert(self, whole: Path, file: Path, student: FinishedStudent, options: ExportOptions) -> None:
        """Store the graph as it is, or as onnxruntime optimises it."""
        if options.optimise:
            optimised(whole, file, "extended")
            return
        for part in whole.parent.glob(f"{whole.name}*"):
            shutil.copyfile(part, file.parent / part.name)
