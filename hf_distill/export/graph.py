"""Writes a PyTorch model as an ONNX graph with free batch size and length."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_distill.errors import UserError, first_line
from hf_distill.models.inspection import taken_by

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hf_distill.export.base import FinishedStudent
    from hf_distill.models.outline import HeadKind

# What the head predicts -> names of the outputs.
OUTPUTS: dict[HeadKind, tuple[str, ...]] = {
    "labels": ("logits",),
    "spans": ("start_logits", "end_logits"),
    "tokens": ("logits",),
    "vectors": ("sentence_embedding", "last_hidden_state"),
}
# Those that have a value for every token.
BY_TOKEN = ("start_logits", "end_logits", "last_hidden_state")
# A graph and its weights in one file can be no larger (a limit of protobuf); above it, weights go into a file beside.
LARGEST = 1_900_000_000
# Libraries that tell of their own progress.
_CHATTY = ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")
_OPERATOR = re.compile(r"(?:No ONNX function found for|No decompositions registered for|Unsupported[^<']*)\W*"
                       r"(?:<OpOverload\(op=')?([\w:.]+)")  # fmt: skip


def input_names(student: FinishedStudent) -> tuple[str, ...]:
    """Return which outputs of the tokenizer the model reads, `input_ids` and `attention_mask` first."""
    taken = taken_by(student.model)
    given = dict.fromkeys(("input_ids", "attention_mask", *student.tokenizer.model_input_names))
    return tuple(name for name in given if name in taken)


def write_graph(student: FinishedStudent, file: Path, opset: int) -> None:
    """Write the model's graph for a batch of any size and length.

    Args:
        student: The finished student.
        file: The file; weights of more than 1.9 GB go into a second one beside it.
        opset: Version of ONNX's operators.

    Raises:
        UserError: PyTorch cannot write it; the line names the operator, if it is one that ONNX does not have.
    """
    import torch

    names, outputs = input_names(student), OUTPUTS[student.head.kind]
    model = student.model
    # Two texts of different lengths, so that the padding mask is traced too.
    ids = torch.arange(14).reshape(2, 7) % 5 + 5
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    example = {name: torch.zeros_like(ids) for name in names} | {"input_ids": ids, "attention_mask": mask}
    free = torch.export.Dim.DYNAMIC
    with exporting(model):
        program = torch.onnx.export(
            _positional(model, names, outputs),
            tuple(example[name] for name in names),
            dynamo=True,
            input_names=names,
            output_names=outputs,
            dynamic_shapes={"inputs": tuple({0: free, 1: free} for _ in names)},
            opset_version=opset,
            verbose=False,
        )
    save_graph(program, file, model, lambda name: ("batch", "sequence"))


@contextlib.contextmanager
def exporting(model: PreTrainedModel) -> Iterator[None]:
    """Context manager around PyTorch's exporter: no gradients, no remarks, and one line for what goes wrong.

    Raises:
        UserError: PyTorch cannot write the model; the line names the operator, if it is one that ONNX does not have.
    """
    import torch

    try:
        with torch.no_grad(), _quiet():
            yield
    # The exporter raises errors of its own, and whatever the model's code raises for tensors without values.
    except Exception as error:
        raise UserError(_why(model, error)) from error


def save_graph(program: Any, file: Path, model: PreTrainedModel, axes: Callable[[str], Sequence[str]]) -> None:
    """Write what PyTorch's exporter returned.

    Args:
        program: What it returned.
        file: The file; weights of more than 1.9 GB go into a second one beside it.
        model: The model.
        axes: Returns names for the axes of an input or output, of which the free axes are called so.
    """
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    _clean(program.model)
    _name_axes(program.model.graph, axes)
    program.save(str(file), external_data=size > LARGEST)


def _positional(model: PreTrainedModel, names: Sequence[str], outputs: Sequence[str]) -> Any:
    """Return a module that takes the inputs in order, and returns the outputs in order."""
    import torch

    class Positional(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *inputs: Any) -> Any:
            found = self.model(**dict(zip(names, inputs, strict=True)), return_dict=True)
            return tuple(found[name] for name in outputs)

    return Positional().eval()


def _clean(model: Any) -> None:
    """Remove what the exporter writes down of this machine: paths and lines of the code behind each operator."""
    model.metadata_props.clear()
    for graph in (model.graph, *(one.graph for one in model.functions.values())):
        graph.metadata_props.clear()
        graph.doc_string = None
        for node in graph.all_nodes():
            node.metadata_props.clear()
            node.doc_string = None
        for value in (*graph.inputs, *graph.outputs, *graph.initializers.values()):
            value.metadata_props.clear()
            value.doc_string = None


def _name_axes(graph: Any, axes: Callable[[str], Sequence[str]]) -> None:
    """Name the free axes of inputs and outputs; the exporter numbers them."""
    import onnx_ir

    for value in (*graph.inputs, *graph.outputs):
        names = [*axes(value.name), *[None] * len(value.shape)]
        free = [isinstance(size, onnx_ir.SymbolicDim) for size in value.shape]
        value.shape = onnx_ir.Shape([names[axis] if free[axis] else size for axis, size in enumerate(value.shape)])


def _why(model: PreTrainedModel, error: Exception) -> str:
    cause: BaseException | None = error
    texts = []
    while cause is not None:
        texts.append(str(cause))
        cause = cause.__cause__
    name = type(model).__name__
    if found := next(filter(None, map(_OPERATOR.search, texts)), None):
        return f"{name} uses the operator {found[1]}, which ONNX does not have, so it cannot be exported."
    reason = first_line(ValueError(texts[-1]))
    return f"PyTorch cannot write {name} as ONNX: {reason}"


@contextlib.contextmanager
def root_logger_kept() -> Iterator[None]:
    """Context manager: without what a library does to the root logger.

    `onnxruntime.quantization` sets it up when it is imported, and warns by it: from then on every message of this
    process would come a second time, in another form.
    """
    root, nothing = logging.getLogger(), logging.NullHandler()
    handlers, level = root.handlers[:], root.level
    root.addHandler(nothing)  # basicConfig does nothing where there is one
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Context manager: without the exporter's own remarks, which say nothing to who exports a student."""
    levels = {name: logging.getLogger(name).level for name in _CHATTY}
    for name in levels:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
