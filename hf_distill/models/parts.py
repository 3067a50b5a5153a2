"""The parts of a model: where its embeddings and its head are, and how many parameters each part has."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_distill.formatting import count
from hf_distill.models.quantization import weights_of

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

# Bytes of a weight in the file that a run saves.
FLOAT32 = 4
# A number in the name of a parameter: it is in a list of layers.
_IN_LIST = re.compile(r"(^|\.)\d+\.")


@dataclass(frozen=True)
class Parts:
    """How many parameters the parts of a model have; shared ones count once.

    Attributes:
        embeddings: Tables of tokens and positions, and what the class keeps beside them; with a head that shares them.
        layers: All layers.
        head: What the class adds to its base model, shared weights excepted.
        rest: Everything else, such as a pooler or the last normalisation.
    """

    embeddings: int
    layers: int
    head: int
    rest: int

    @classmethod
    def of(cls, model: PreTrainedModel) -> Parts:
        """Return the numbers of a model, which may be without weights (`outline.outline`)."""
        parts = part_of(model)
        numbers = dict.fromkeys(("embeddings", "layers", "head", "rest"), 0)
        for parameter in model.parameters():
            numbers[parts[id(parameter)]] += weights_of(parameter)
        return cls(**numbers)

    @property
    def total(self) -> int:
        """All parameters."""
        return self.embeddings + self.layers + self.head + self.rest

    @property
    def bytes(self) -> int:
        """Size of the weights in float32, in bytes."""
        return self.total * FLOAT32

    @property
    def share_of_embeddings(self) -> float:
        """Share of the parameters that are embeddings."""
        return self.embeddings / max(self.total, 1)

    def against(self, teacher: Parts) -> str:
        """Return how many times fewer parameters a student with these parts has than its teacher, or more.

        >>> small, large = Parts(300, 100, 0, 0), Parts(300, 300, 0, 0)
        >>> small.against(large)
        '1.5 times fewer than the teacher, since 75 % are embeddings, as many as before'
        >>> large.against(small), small.against(small)
        ('1.5 times more than the teacher', 'as many as the teacher')
        """
        if self.total == teacher.total:
            return "as many as the teacher"
        if self.total > teacher.total:
            return f"{_factor(self.total, teacher.total)} times more than the teacher"
        times = f"{_factor(teacher.total, self.total)} times fewer than the teacher"
        if self.embeddings == teacher.embeddings and self.share_of_embeddings > 0.5:
            return (
                f"{times}, since {self.share_of_embeddings:.0%}".replace("%", " %")
                + " are embeddings, as many as before"
            )
        return times

    def in_words(self) -> str:
        """Return the numbers of the parts that there are, and the size of the weights.

        >>> Parts(embeddings=3_000_000, layers=1_000_000, head=0, rest=512).in_words()
        'embeddings 3.0 M (75 %), layers 1.0 M (25 %), rest 512; 16.0 MB as float32'
        """
        numbers = {"embeddings": self.embeddings, "layers": self.layers, "head": self.head, "rest": self.rest}
        shares = {name: round(100 * number / max(self.total, 1)) for name, number in numbers.items()}
        each = (
            f"{name} {count(number)}{f' ({shares[name]} %)' if shares[name] else ''}"
            for name, number in numbers.items()
            if number
        )
        return f"{', '.join(each)}; {self.bytes / 1e6:,.1f} MB as float32"


def _factor(more: int, fewer: int) -> str:
    """Return how many times more one number is, with as many digits as show that it is more.

    >>> _factor(300, 200), _factor(103, 100), _factor(100_001, 100_000)
    ('1.5', '1.03', '1.00')
    """
    factor = more / max(fewer, 1)
    return f"{factor:.1f}" if factor >= 1.05 else f"{factor:.2f}"


def part_of(model: PreTrainedModel) -> dict[int, str]:
    """Return id of a parameter -> the part in which it is counted: `embeddings`, `layers`, `head` or `rest`."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    tables, heads = embeddings(model), head(model)
    return {one: _part(known_as, tables, heads) for one, known_as in names.items()}


def _part(names: list[str], tables: list[str], heads: list[str]) -> str:
    """Return the part that a parameter with these names belongs to."""

    def inside(places: list[str]) -> bool:
        return any(name == place or name.startswith(f"{place}.") for name in names for place in places)

    if inside(tables):
        return "embeddings"
    if inside(heads):
        return "head"
    return "layers" if any(_IN_LIST.search(name) for name in names) else "rest"


def embeddings(model: PreTrainedModel) -> list[str]:
    """Return the paths of the embeddings: tables of tokens and positions, and modules beside them in the class."""
    from torch import nn

    untyped: Any = model
    outputs = untyped.get_output_embeddings()
    found: list[str] = []
    for name, module in model.named_modules():
        parts = name.split(".")
        # Not tables inside a layer: T5 has one of relative positions in its first layer.
        if module is outputs or any(one.isdecimal() for one in parts) or any(name.startswith(f"{up}.") for up in found):
            continue
        if isinstance(module, nn.Embedding) or ("embed" in parts[-1] and any(True for _ in module.parameters())):
            found.append(name)
    return found


def head(model: PreTrainedModel) -> list[str]:
    """Return the modules that the class adds to its base model; for a class without one (T5), the output embeddings."""
    untyped: Any = model
    body: nn.Module = model.base_model
    if body is model:
        outputs = untyped.get_output_embeddings()
        return [name for name, module in model.named_modules() if module is outputs and outputs is not None]
    return [name for name, module in model.named_children() if module is not body]
