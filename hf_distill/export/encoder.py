"""ONNX: the graph with float32 weights, from which the int8 formats are made, and how all are opened."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from hf_distill.export.base import WRITER, FinishedStudent, Format, Session
from hf_distill.export.beside import write_beside
from hf_distill.export.causal import WritingSession, has_other_memory, other_memory, write_with_cache
from hf_distill.export.graph import root_logger_kept, write_graph
from hf_distill.export.session import OnnxSession

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from hf_distill.export.options import ExportOptions

MODEL = "model.onnx"
# Auto classes of models that read a text at once.
READERS = (
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
    "AutoModelForQuestionAnswering",
    "AutoModelForMaskedLM",
    "AutoModel",
)


class OnnxEncoder(Format):
    """A graph with the tokenizer and a script that runs both.

    Attributes:
        writes: Whether it takes models that write texts.
    """

    needs: ClassVar[tuple[str, ...]] = ("onnx", "onnxscript", "onnxruntime")
    writes: ClassVar[bool] = True

    def refuses(self, auto_class: str, config: PretrainedConfig) -> str | None:
        """Return why such a student cannot be written; None if it can."""
        if getattr(config, "is_encoder_decoder", False):
            return f"{self.name} is one graph, and this student has two: an encoder that reads, a decoder that writes."
        if auto_class == WRITER and self.writes:
            return other_memory(config) if has_other_memory(config) else None
        if auto_class not in READERS:
            return f"{self.name} is for models that read a text at once, and this student writes texts: take onnx-int8."
        return None

    def settings(self, options: ExportOptions) -> dict[str, Any]:
        """Return those of the options on which the graph depends."""
        return {"opset": options.opset, "optimise": options.optimise}

    def write(self, student: FinishedStudent, into: Path, options: ExportOptions) -> None:
        """Write graph, tokenizer, configuration and script."""
        whole = student.scratch / f"opset-{options.opset}" / MODEL
        if not whole.exists():
            whole.parent.mkdir()
            written = write_with_cache if student.writes else write_graph
            written(student, whole, options.opset)
        with root_logger_kept():
            self.convert(whole, into / MODEL, student, options)
        write_beside(student, into)

    @abstractmethod
    def convert(self, whole: Path, file: Path, student: FinishedStudent, options: ExportOptions) -> None:
        """Write the graph of this format.

        Args:
            whole: The graph with float32 weights.
            file: Where it is written.
            student: The student.
            options: Section `export` of the recipe.
        """

    def open(self, directory: Path, threads: int | None = None) -> Session:
        """Return the graph in onnxruntime."""
        graph = OnnxSession(directory / MODEL, threads)
        return WritingSession(graph) if WritingSession.fits(graph) else graph


def optimised(graph: Path, file: Path, level: str) -> None:
    """Write a graph as onnxruntime optimises it, unless it is there.

    Args:
        graph: The graph.
        file: Where it is written; large weights go into a file beside it.
        level: `basic`: constants are computed and needless steps left out, in ONNX's own operators. `extended`: steps
            are joined too, into operators of onnxruntime.
    """
    import onnxruntime

    if file.exists():
        return
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_ENABLE_{level.upper()}")
    options.optimized_model_filepath = str(file)
    file.parent.mkdir(exist_ok=True)
    if is_large(graph):
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", f"{file.name}.data")
        options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
    onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])


def ready(whole: Path) -> Path:
    """Return a graph as it is quantised: with constants computed, so that weights are inputs of the products.

    Args:
        whole: The graph with float32 weights; the other is written beside it.
    """
    import onnx
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    file = whole.parent / "ready" / MODEL
    if not file.exists():
        file.parent.mkdir()
        optimised(whole, basic := whole.parent / "basic" / MODEL, "basic")
        model = onnx.load(basic)
        add_pre_process_metadata(model)  # else onnxruntime asks for it
        onnx.save(model, file, save_as_external_data=is_large(whole), location=f"{MODEL}.data")
    return file


def is_large(graph: Path) -> bool:
    """Return whether the weights of a graph lie in a file beside it."""
    return graph.with_name(f"{graph.name}.data").exists()
