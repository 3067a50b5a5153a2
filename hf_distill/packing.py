"""Packing in a training: which models run packed, in which batches, and if not, why."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from hf_distill.bins import Bins, arrange
from hf_distill.errors import UserError
from hf_distill.packer import Packer, Unpackable, open_packer
from hf_distill.replay import Replay
from hf_distill.sentence_encoder import sequences

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from hf_distill.terms import Terms

logger = logging.getLogger(__name__)

# `auto` packs what becomes at least so much smaller; below, there is little to win that packing itself does not cost.
WORTH_IT = 0.1


class Packing:
    """Runs student and teacher packed, batch by batch.

    Args:
        args: Whose `packing` is `"auto"`, true or false.
        student: Without wrapper of a distributed training; PEFT's may be there.
        teacher: Likewise; None where there is none.
        terms: What is compared.

    Attributes:
        decisions: What was decided, a line for the user; nothing where packing is off by his own word.

    Raises:
        UserError: It is true, and something here needs padded batches.
    """

    def __init__(self, args: TrainingArguments, student: nn.Module, teacher: nn.Module | None, terms: Terms) -> None:
        choice = getattr(args, "packing", "auto")
        self._asked = choice is True
        self._packers: dict[str, Packer] = {}
        self._last: tuple[Tensor, Bins | None] | None = None
        self._hidden = _width(student)
        self.decisions: list[str] = []
        if choice is False:
            return
        if obstacle := _obstacle(args, terms):
            if self._asked:
                raise UserError(f"packing is true, but {obstacle}. Leave one of the two out.", key="packing")
            self.decisions = [f"packing: off ({obstacle})"]
            return
        refused = {}
        for whose, model in (("student", student), ("teacher", teacher)):
            if model is not None and not isinstance(model, Replay):
                try:
                    packer = open_packer(model)
                    if whose == "student":
                        _check_recomputing(packer, args)
                    self._packers[whose] = packer
                except Unpackable as error:
                    refused[whose] = str(error)
        self._report(refused, main=bool(args.process_index == 0))

    def _report(self, refused: Mapping[str, str], main: bool) -> None:
        why = "; ".join(f"{whose}: {reason}" for whose, reason in refused.items())
        on = " and ".join(self._packers)
        where = "" if self._asked else f", where a batch becomes {WORTH_IT:.0%} smaller"
        self.decisions = [f"packing: {f'on for {on}{where}' if on else 'off'}{f' ({why})' if why else ''}"]
        if why and self._asked and main:
            logger.warning("packing is true, but not for all: %s", why)

    def student(self, inputs: Mapping[str, Tensor]) -> AbstractContextManager[None]:
        """Run the student packed on a batch, if that is worth it; open for one forward pass."""
        return self._run("student", inputs)

    def teacher(self, inputs: Mapping[str, Tensor]) -> AbstractContextManager[None]:
        """Likewise the teacher, on what it reads."""
        return self._run("teacher", inputs)

    def _run(self, whose: str, inputs: Mapping[str, Tensor]) -> AbstractContextManager[None]:
        packer = self._packers.get(whose)
        bins = None if packer is None else self._bins(inputs)
        if packer is None or bins is None or not packer.takes(bins):
            return nullcontext()
        return packer.packed(bins)

    def _bins(self, inputs: Mapping[str, Tensor]) -> Bins | None:
        """Return where the tokens of a batch go; None where it stays as it is."""
        mask = inputs.get("attention_mask")
        if mask is None or mask.dim() not in (2, 3):
            return None
        if self._last is None or self._last[0] is not mask:
            # On an accelerator the host waits here for the mask, once a micro-batch and not once a model; picking the
            # rows that count makes it wait again. Known lengths would have to come with the batch, past accelerate,
            # which slices and concatenates what is in it.
            bins = arrange(sequences(mask != 0).cpu(), self._hidden)
            if bins is not None and not self._asked and bins.share > 1 - WORTH_IT:
                bins = None
            self._last = mask, None if bins is None else bins.to(mask.device)
        return self._last[1]


def _width(model: nn.Module) -> int:
    config: Any = getattr(model, "config", None)
    width = None if config is None else getattr(config.get_text_config(), "hidden_size", None)
    return width if isinstance(width, int) else 512


def _obstacle(args: TrainingArguments, terms: Terms) -> str | None:
    """Return what needs padded batches, to be read after "but"."""
    if args.torch_compile:
        return "torch_compile would compile anew for every shape"
    names = [name for name, one in zip(terms.names, terms.objectives, strict=True) if one.looks_inside]
    if names or terms.watch:
        return f"{', '.join(names) or 'an objective'} looks into the models, whose layers are then packed"
    return None


def _check_recomputing(packer: Packer, args: TrainingArguments) -> None:
    on = args.gradient_checkpointing or any(getattr(one, "gradient_checkpointing", False) for one in packer.layers)
    if on and not packer.can_recompute:
        raise Unpackable("gradient checkpointing would compute its layers again when packing is over")
