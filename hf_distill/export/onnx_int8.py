"""`onnx-int8`: int8 weights; the ranges of activations are taken from each input as it runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from hf_distill.export.encoder import OnnxEncoder, is_large, optimised, ready

if TYPE_CHECKING:
    from hf_distill.export.base import FinishedStudent
    from hf_distill.export.options import ExportOptions

# Settings of onnxruntime.quantization that are the same with and without calibration. 7 bits of a weight: with all 8,
# processors without VNNI add up 16-bit numbers that overflow, and give a wrong result without saying so.
QUANTISED: dict[str, Any] = {
    "per_channel": True,
    "reduce_range": True,
    "extra_options": {"MatMulConstBOnly": True},
}
QUANTISED_OPERATORS = ["MatMul", "Gemm", "Gather"]


class OnnxInt8(OnnxEncoder):
    """The student with int8 weights and embeddings (dynamic quantisation by onnxruntime)."""

    name: ClassVar[str] = "onnx-int8"
    weights: ClassVar[str] = "int8"

    def convert(self, whole: Path, file: Path, student: FinishedStudent, options: ExportOptions) -> None:
        """Quantise matrix products by weights, and embeddings."""
        from onnxruntime.quantization import QuantType, quantize_dynamic

        target = whole.with_name("int8.onnx") if options.optimise else file
        quantize_dynamic(
            ready(whole),
            target,
            op_types_to_quantize=QUANTISED_OPERATORS,
            weight_type=QuantType.QInt8,
            use_external_data_format=is_large(whole),
            **QUANTISED,
        )
        if options.optimise:
            optimised(target, file, "extended")
