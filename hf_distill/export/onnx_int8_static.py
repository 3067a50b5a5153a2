"""`onnx-int8-static`: int8 weights and activations, whose ranges are taken from train rows beforehand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from hf_distill.errors import UserError
from hf_distill.export.encoder import OnnxEncoder, is_large, optimised, ready
from hf_distill.export.onnx_int8 import QUANTISED, QUANTISED_OPERATORS
from hf_distill.export.session import OnnxSession

if TYPE_CHECKING:
    from hf_distill.export.base import FinishedStudent
    from hf_distill.export.options import ExportOptions


class OnnxInt8Static(OnnxEncoder):
    """The student with int8 weights and activations (static quantisation by onnxruntime)."""

    name: ClassVar[str] = "onnx-int8-static"
    weights: ClassVar[str] = "int8"
    writes: ClassVar[bool] = False  # the cache of a row that is run is empty

    def settings(self, options: ExportOptions) -> dict[str, Any]:
        """Return those of the options on which the graph depends."""
        calibration = options.calibration
        return {**super().settings(options), "rows": calibration.rows, "method": calibration.method}

    def reads(self, options: ExportOptions) -> int:
        """Return how many train rows are run."""
        return options.calibration.rows

    def convert(self, whole: Path, file: Path, student: FinishedStudent, options: ExportOptions) -> None:
        """Run train rows, and quantise matrix products by weights."""
        from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

        if student.rows is None:
            raise UserError("onnx-int8-static takes the ranges of activations from train rows, and there are none.")
        basic = ready(whole)
        names = OnnxSession(basic).inputs
        rows = student.rows(options.calibration.rows)
        method = {
            "minmax": CalibrationMethod.MinMax,
            "entropy": CalibrationMethod.Entropy,
            "percentile": CalibrationMethod.Percentile,
        }[options.calibration.method]
        target = whole.with_name("static.onnx") if options.optimise else file
        quantize_static(
            basic,
            target,
            _reader(names, rows),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=QUANTISED_OPERATORS,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=method,
            use_external_data_format=is_large(whole),
            **QUANTISED,
        )
        if options.optimise:
            optimised(target, file, "extended")


def _reader(names: tuple[str, ...], rows: Any) -> Any:
    """Return the rows one by one, without padding, which no text has."""
    import numpy as np
    from onnxruntime.quantization import CalibrationDataReader

    class RowReader(CalibrationDataReader):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            self.left: Iterator[Any] = iter(rows)

        def get_next(self) -> Any:
            row = next(self.left, None)
            if row is None:
                return None
            zeros = [0] * len(row["input_ids"])
            return {name: np.array([row.get(name, zeros)], np.int64) for name in names}

    return RowReader()
