"""A student made of some of a larger model's layers, mostly the teacher's."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

from hf_distill.component import component
from hf_distill.errors import UserError
from hf_distill.models.layers import find_stacks
from hf_distill.students.copied import CopiedStudent
from hf_distill.students.fewer_layers import fields_of, proportional_depths, shortened, some_layers
from hf_distill.students.sized import SizedStudent

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from hf_distill.models.loading import Head


@component
class CopyLayers(CopiedStudent, SizedStudent):
    """A smaller copy of a model: its embeddings, its head and some of its layers.

    The start of DistilBERT (Sanh et al. 2019, arXiv 1910.01108, section 2). It works for every encoder or decoder that
    keeps its layers in one list (the BERT, RoBERTa, DistilBERT, GPT-2 and Llama families and most others), and for
    encoder-decoder models with a list on each side (the BART, Marian, Pegasus and T5 families). For those, a shallow
    decoder under a whole encoder costs least and saves most, since the decoder runs once for every generated token
    (Shleifer and Rush 2020, arXiv 2010.13002: `{layers: 12, decoder_layers: 3}`).

    `from_config` makes a student of any size, but from random weights.

    Attributes:
        layers: How many layers to copy, spread evenly from the first to the last, or which ones, counted from 0: `[0,
            2, 4, 7, 9, 11]`. For an encoder-decoder model, layers of the encoder. Default: as many as the cost allows.
        decoder_layers: The same for the decoder of an encoder-decoder model. Default: as `layers`; with a cost, as many
            as keep the proportion of the two.
    """

    name: ClassVar[str] = "copy_layers"
    decided: ClassVar[tuple[str, ...]] = ("layers",)
    needs_one_of: ClassVar[tuple[str, ...]] = ("layers", "size", "parameters", "latency")
    smaller: ClassVar[str] = "prune_width makes a student narrower, from_config narrower with fewer layers."

    layers: int | list[int] | None = None
    decoder_layers: int | list[int] | None = None

    def shapes(self, teacher: PretrainedConfig) -> Iterator[CopyLayers]:
        """Yield a student for each number of layers, from one to all.

        In an encoder-decoder model both stacks keep their proportion, unless `decoder_layers` is given.
        """
        fields = fields_of(self.whole_config(teacher), decoder=self.decoder_layers is not None)
        totals = {field: total for field, total in fields.items() if getattr(self, field) is None}
        yield from (self.with_shape(**layers) for layers in proportional_depths(totals))

    def config(self, teacher: PretrainedConfig) -> PretrainedConfig:
        """Return the configuration of the whole model, with fewer layers.

        Raises:
            UserError: The model does not have these layers, or its weights are quantized.
        """
        whole = self.whole_config(teacher)
        fields = fields_of(whole, decoder=self.decoder_layers is not None)
        return shortened(whole, {field: self.chosen(total, field) for field, total in fields.items()})

    def make(self, teacher: PreTrainedModel, head: Head) -> PreTrainedModel:
        """Build the student and copy the weights of the chosen layers, the embeddings and the head.

        Raises:
            UserError: The teacher's lists of layers cannot be found, its labels are not the task's, or a layer would
                compute something else at its new position.
        """
        whole, labels = self.whole(teacher, head)
        found = find_stacks(whole)
        fields_of(whole.config, decoder=self.decoder_layers is not None)
        kept = {field: self.chosen(len(layers), field) for field, (_, layers) in found.items()}
        return some_layers(whole, kept, head, labels)

    def chosen(self, total: int, field: str = "layers") -> list[int]:
        """Return the numbers of the layers to copy.

        Args:
            total: Number of layers of the whole model.
            field: The field that chooses them: `layers` or `decoder_layers`.

        Raises:
            UserError: The model does not have these layers, or the list is not increasing.
        """
        wanted = self.layers if field == "layers" or self.decoder_layers is None else self.decoder_layers
        if wanted is None:
            self.check_shaped()
            wanted = []
        if isinstance(wanted, int):
            if not 1 <= wanted <= total:
                of = f"'{self.source}'" if self.source else "its teacher (in a chain, the student before it)"
                other = "" if self.source else " To copy from another model, name it: `model:`."
                raise UserError(
                    f"{wanted} is not between 1 and {total}, the number of layers of {of}.{other}", key=field
                )
            return spread(wanted, total)
        if not wanted or not all(0 <= index < total for index in wanted):
            raise UserError(f"{wanted}: wanted one or more of the layers 0 to {total - 1}.", key=field)
        if any(later <= earlier for earlier, later in pairwise(wanted)):
            raise UserError(f"{wanted}: wanted each layer once, in ascending order: {sorted(set(wanted))}.", key=field)
        return wanted


def spread(count: int, total: int) -> list[int]:
    """Return `count` of `total` layers, evenly spaced from the first to the last.

    Layer `i` is `i * (total - 1) / (count - 1)`, rounded, halves to the even number. 12 to 6 is DistilBERT's
    choice. A single layer is the first: it is the one that has learned to read embeddings.

    >>> spread(6, 12)
    [0, 2, 4, 7, 9, 11]
    """
    if count == 1:
        return [0]
    return [round(index * (total - 1) / (count - 1)) for index in range(count)]
