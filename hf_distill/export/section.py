"""The section `export` of a recipe: in which formats the finished student leaves PyTorch."""

from __future__ import annotations

from pydantic import Field, field_validator

from hf_distill.component import component
from hf_distill.errors import did_you_mean
from hf_distill.export import FORMATS
from hf_distill.export.options import ExportOptions


@component
class Export(ExportOptions):
    """In which formats the finished student is written, to run without PyTorch.

    Each is written into a folder of its own in `output_dir`, and compared with the student in PyTorch.

    Attributes:
        formats: Names of formats, such as `[onnx, onnx-int8]`. Default: none.
    """

    formats: list[str] = Field(default_factory=list)

    @field_validator("formats")
    @classmethod
    def _known(cls, formats: list[str]) -> list[str]:
        for index, name in enumerate(formats):
            if name not in FORMATS:
                raise ValueError(f"unknown format '{name}'.{did_you_mean(name, FORMATS)}")
            if name in formats[:index]:
                raise ValueError(f"'{name}' twice. Name it once.")
        return formats
