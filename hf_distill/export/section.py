"""The section `export` of a recipe: in which formats the finished student leaves PyTorch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from hf_distill.component import component
from hf_distill.errors import did_you_mean

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
class Export:
    """In which formats the finished student is written, to run without PyTorch.

    Each is written into a folder of its own in `output_dir`, and compared with the student in PyTorch.

    Attributes:
        formats: Names of formats, such as `[onnx, onnx-int8]`. Default: none.
        opset: Version of ONNX's operators.
        optimise: Store graphs as onnxruntime optimises them. They load faster, and only onnxruntime reads them;
            otherwise it does the same whenever it loads one.
        calibration: From which train rows `onnx-int8-static` takes the ranges of activations.
            Default: all that occurs in 128 rows.
    """

    formats: list[str] = Field(default_factory=list)
    opset: Annotated[int, Field(ge=OPSETS[0], le=OPSETS[1])] = 20
    optimise: bool = False
    calibration: CalibrationOptions = CalibrationOptions()

    @field_validator("formats")
    @classmethod
    def _known(cls, formats: list[str]) -> list[str]:
        from hf_distill.export import FORMATS

        for index, name in enumerate(formats):
            if name not in FORMATS:
                raise ValueError(f"unknown format '{name}'.{did_you_mean(name, FORMATS)}")
            if name in formats[:index]:
                raise ValueError(f"'{name}' twice. Name it once.")
        return formats
