"""The table of formats: a recipe's name -> the class that writes a finished student, to run without PyTorch."""

from __future__ import annotations

from hf_distill.export.base import FinishedStudent, Format, Session
from hf_distill.export.onnx_float import Onnx
from hf_distill.export.onnx_int8 import OnnxInt8
from hf_distill.export.onnx_int8_static import OnnxInt8Static

FORMATS: dict[str, type[Format]] = {
    "onnx": Onnx,
    "onnx-int8": OnnxInt8,
    "onnx-int8-static": OnnxInt8Static,
}

__all__ = [
    "FORMATS",
    "FinishedStudent",
    "Format",
    "Onnx",
    "OnnxInt8",
    "OnnxInt8Static",
    "Session",
]
