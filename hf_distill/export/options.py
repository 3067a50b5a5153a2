"""How a finished student is written: what the formats read of the section `export`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from hf_distill.component import component

# What both torch.onnx and onnxruntime know; below 18 PyTorch would write 18 all the same.
OPSETS = (18, 23)


@component
class CalibrationOptions:
    """The train rows from which the ranges of activations are taken, for int8 with fixed ranges.

    Attributes:
        rows: How many rows of the train split are run.
        method: How a range is taken from the values that occur: `minmax` takes all of them, `percentile` leaves out the
            most extreme, `entropy` loses the least information.
    """

    rows: Annotated[int, Field(ge=1)] = 128
    method: Literal["minmax", "entropy", "percentile"] = "minmax"


@component
class ExportOptions:
    """How a finished student is written.

    Attributes:
        opset: Version of ONNX's operators.
        optimise: Store graphs as onnxruntime optimises them. They load faster, and only onnxruntime reads them;
            otherwise it does the same whenever it loads one.
        calibration: From which train rows `onnx-int8-static` takes the ranges of activations.
            Default: all that occurs in 128 rows.
    """

    opset: Annotated[int, Field(ge=OPSETS[0], le=OPSETS[1])] = 20
    optimise: bool = False
    calibration: CalibrationOptions = CalibrationOptions()
