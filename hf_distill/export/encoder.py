"""ONNX of encoders: the graph with float32 weights, from which the int8 formats are made, and how all are opened."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from hf_distill.export.base import FinishedStudent, Format, Session
from hf_distill.export.beside import write_beside
from hf_distill.export.graph import write_graph

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PretrainedConfig

    from hf_distill.export.base import Arrays
    from hf_distill.export.section import Export

MODEL = "model.onnx"
# Auto classes of models that read a text at once.
READERS = (
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
    "AutoModelForQuestionAnswering",
    "AutoModelForMaskedLM",
    "AutoModel",
)


class OnnxSession(Session):
    """A graph in onnxruntime, on the CPU.

    Args:
        file: The graph.
        threads: Number of threads; None for one on each core.
    """

    def __init__(self, file: Path, threads: int | None = None) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self.inputs = tuple(one.name for one in self._session.get_inputs())
        self._outputs = [one.name for one in self._session.get_outputs()]

    def __call__(self, batch: Arrays) -> dict[str, NDArray[Any]]:
        """Return the outputs by name; token types that are not given are 0."""
        import numpy as np

        zeros = np.zeros(batch["input_ids"].shape, np.int64)
        feeds = {name: np.asarray(batch.get(name, zeros), np.int64) for name in self.inputs}
        return dict(zip(self._outputs, self._session.run(self._outputs, feeds), strict=True))


class OnnxEncoder(Format):
    """A graph of a model that reads a text at once, with the tokenizer and a script that runs both."""

    needs: ClassVar[tuple[str, ...]] = ("onnx", "onnxscript", "onnxruntime")

    def refuses(self, auto_class: str, config: PretrainedConfig) -> str | None:
        """Return why such a student cannot be written; None if it can."""
        if auto_class not in READERS or getattr(config, "is_encoder_decoder", False):
            return f"{self.name} is for models that read a text at once, and this student writes texts token by token."
        return None

    def settings(self, options: Export) -> dict[str, Any]:
        """Return those of the options on which the graph depends."""
        return {"opset": options.opset, "optimise": options.optimise}

    def write(self, student: FinishedStudent, into: Path, options: Export) -> None:
        """Write graph, tokenizer, configuration and script."""
        whole = student.scratch / f"opset-{options.opset}" / MODEL
        if not whole.exists():
            whole.parent.mkdir()
            write_graph(student, whole, options.opset)
        self.convert(whole, into / MODEL, student, options)
        write_beside(student, into)

    @abstractmethod
    def convert(self, whole: Path, file: Path, student: FinishedStudent, options: Export) -> None:
        """Write the graph of this format.

        Args:
            whole: The graph with float32 weights.
            file: Where it is written.
            student: The student.
            options: Section `export` of the recipe.
        """

    def open(self, directory: Path, threads: int | None = None) -> Session:
        """Return the graph in onnxruntime."""
        return OnnxSession(directory / MODEL, threads)


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
