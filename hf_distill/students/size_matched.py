"""Copies weights between models of other classes or sizes, wherever two with the same task are equally large."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_distill.errors import UserError
from hf_distill.formatting import count
from hf_distill.models.parts import Parts, part_of
from hf_distill.students.weight_names import OF_ATTENTION, Layer, Piece, depths, heads_of, pieces

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Copied:
    """What was copied from the teacher.

    Attributes:
        parameters: Number of copied weights of each part of the student: `embeddings`, `layers`, `head`, `rest`.
        parts: Number of weights of each part.
        layers: For each stack of layers, the teacher's layer from which each of the student's has copies, if any.
        missing: What both models have, but in another size.
    """

    parameters: Mapping[str, int]
    parts: Parts
    layers: list[list[int]]
    missing: list[str]

    @property
    def share(self) -> float:
        """Share of the student's parameters that are copies."""
        return sum(self.parameters.values()) / max(self.parts.total, 1)

    def facts(self) -> dict[str, Any]:
        """Return what report and model card say."""
        of = {name: getattr(self.parts, name) for name in ("embeddings", "layers", "head", "rest")}
        total = sum(self.parameters.values())
        each = {name: f"{count(self.parameters.get(name, 0))} of {count(size)}" for name, size in of.items() if size}
        return {
            "copied from the teacher": {
                "parameters": f"{count(total)} of {count(self.parts.total)} ({100 * self.share:.0f} %)",
                **each,
                **({"its layers": self.layers[0] if len(self.layers) == 1 else self.layers} if self.layers else {}),
                **({"of another size": ", ".join(self.missing)} if self.missing else {}),
            }
        }


def copy_size_matched(
    student: PreTrainedModel, teacher: PreTrainedModel, *, key: str = "start", chosen_for: str = ""
) -> Copied:
    """Copy the teacher's weights into a new student, in place, wherever both have the same thing in the same size.

    Layers of the student take those of evenly spaced layers of the teacher. Between models of one class, weights with
    the same name are copied; between others, embeddings, output embeddings, and the matrices, biases and norms of a
    layer that have the same task. Those of attention need equally many heads. A head is copied if all of it fits and
    its labels are the student's.

    Both models may be without weights (`outline.outline`): this then only counts.

    Args:
        student: The new student.
        teacher: The model to copy from.
        key: Recipe key for errors.
        chosen_for: The cost that led to the student's sizes, such as `size 0.5`, for errors.

    Raises:
        UserError: Nothing can be copied.
    """
    import torch

    ours, theirs = pieces(student, teacher), pieces(teacher, student)
    alike = heads_of(student) == heads_of(teacher)
    both = zip(depths(student), depths(teacher), strict=False)
    layers = [_spaced(count, total) for count, total in both if total]

    def source(layer: Layer | None, name: str) -> Piece | None:
        return theirs.get((layer and _source(layer, layers), name))

    def fits(layer: Layer | None, name: str) -> bool:
        """Return whether both have it in one size; of a bias also what it is added to."""
        mine, other = ours.get((layer, name)), source(layer, name)
        if mine is None or other is None or mine.values.shape != other.values.shape:
            return False
        if not alike and name.partition(":")[0] in OF_ATTENTION:
            return False
        weight = f"{name.removesuffix('bias')}weight"
        return weight == name or not name.endswith("bias") or (layer, weight) not in ours or fits(layer, weight)

    copied: Counter[str] = Counter()
    missing: dict[str, None] = {}
    places, seen = part_of(student), set[tuple[int, int]]()
    with torch.no_grad():
        for (layer, name), piece in ours.items():
            once = (id(piece.parameter), piece.start)
            found = source(layer, name)
            if found is None or once in seen:
                continue
            seen.add(once)
            if not fits(layer, name):
                missing[name.partition(":")[0]] = None
                continue
            piece.values.copy_(found.values)
            copied[places[id(piece.parameter)]] += piece.values.numel()
    if not copied:
        raise UserError(
            f"nothing of the teacher fits into a {type(student).__name__} of {_widths(student, teacher)}"
            f"{f' ({chosen_for} led to that width)' if chosen_for else ''}. Give the teacher's width, overrides: "
            "{hidden_size: ...}, or leave start out: random is the default.",
            key=key,
        )
    return Copied(dict(copied), Parts.of(student), layers if copied["layers"] else [], list(missing))


def _widths(student: PreTrainedModel, teacher: PreTrainedModel) -> str:
    """Return `hidden_size 192 (the teacher's is 384)`."""
    ours, theirs = (getattr(one.config.get_text_config(), "hidden_size", None) for one in (student, teacher))
    return "these sizes" if None in (ours, theirs) else f"hidden_size {ours} (the teacher's is {theirs})"


def _spaced(count: int, total: int) -> list[int]:
    """Return which of `total` layers each of `count` layers takes, evenly spaced from the first to the last.

    >>> _spaced(3, 6), _spaced(4, 2)
    ([0, 2, 5], [0, 0, 1, 1])
    """
    if not total:
        return [0] * count
    return [round(index * (total - 1) / max(count - 1, 1)) for index in range(count)]


def _source(layer: Layer, layers: Sequence[Sequence[int]]) -> Layer | None:
    """Return the teacher's layer from which a layer of the student takes its weights; None if there is none."""
    stack, number = layer
    return (stack, layers[stack][number]) if stack < len(layers) else None
