"""Padding-free layers in a training: which models run so, in which batches, and if not, why."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from hf_distill import parallel
from hf_distill.data.two_tokenizers import PREFIX
from hf_distill.errors import UserError
from hf_distill.models.sentence_encoder import sequences
from hf_distill.training.padding_free.bins import Bins, arrange
from hf_distill.training.padding_free.model import NeedsPadding, PaddingFreeModel, open_padding_free

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from hf_distill.models.target_model import TargetSource
    from hf_distill.training.terms import Terms

Collate = Callable[[list[Any]], Mapping[str, Any]]

logger = logging.getLogger(__name__)

# `auto` takes batches that become at least so much smaller; below, gathering costs about what it saves.
WORTH_IT = 0.1
# Column of a batch with what is read, and the one that is added.
MASK = "attention_mask"
BINS = "bins"


class PaddingFree:
    """Runs the layers of student and teacher without padding, batch by batch.

    Args:
        args: Whose `padding_free` is `"auto"`, true or false.
        student: Without wrapper of a distributed training; PEFT's may be there.
        source: What gives targets; None where there is no teacher.
        terms: What is compared.

    Attributes:
        decisions: What was decided, a line for the user; nothing where `padding_free` is false.

    Raises:
        UserError: It is true, and something here needs padded batches.
    """

    def __init__(self, args: TrainingArguments, student: nn.Module, source: TargetSource | None, terms: Terms) -> None:
        choice = getattr(args, "padding_free", "auto")
        self._asked = choice is True
        self._runners: dict[str, PaddingFreeModel] = {}
        self._last: tuple[Tensor, Bins | None] | None = None
        configs = [getattr(model, "config", None) for model in (student, None if source is None else source.model)]
        self._find = FindBins(_width(student), 1.0 if self._asked else 1 - WORTH_IT, _positions(configs))
        self._warned: set[str] = set()
        self.decisions: list[str] = []
        if choice is False:
            return
        if obstacle := _obstacle(args, terms):
            if self._asked:
                raise UserError(f"padding_free is true, but {obstacle}. Leave one of the two out.", key="padding_free")
            self.decisions = [f"padding_free: off ({obstacle})"]
            return
        refused = {}
        for whose, model in {"student": student, **({} if source is None else source.models)}.items():
            try:
                runner = open_padding_free(model)
                if whose == "student":
                    _check_recomputing(runner, args)
                self._runners[whose] = runner
            except NeedsPadding as error:
                refused[whose] = str(error)
        self._main = parallel.is_first()
        self._report(refused)

    def _report(self, refused: Mapping[str, str]) -> None:
        why = "; ".join(f"{whose}: {reason}" for whose, reason in refused.items())
        # Said before there is a batch: which batches run without padding is not known yet.
        where = "" if self._asked else f"wherever it makes a batch at least {100 * WORTH_IT:.0f} % smaller"
        if not refused:
            self.decisions = [f"padding_free: {where or 'on'}"]
        elif self._runners:
            parts = (f"for the {' and the '.join(self._runners)}", where)
            self.decisions = [f"padding_free: {', '.join(filter(None, parts))} ({why})"]
        else:
            self.decisions = [f"padding_free: off ({why})"]
        if why and self._asked and self._main:
            logger.warning("padding_free is true, but not for all: %s", why)

    def running(self, whose: str, inputs: Mapping[str, Any]) -> AbstractContextManager[None]:
        """Run a model's layers without padding, if what it reads is worth it; open for one forward pass.

        Args:
            whose: `student`, or the name of one of the source's models.
            inputs: What it reads.
        """
        runner = self._runners.get(whose)
        bins = None if runner is None else self._bins(inputs)
        if runner is None or bins is None:
            return nullcontext()
        if not runner.takes(bins):
            self._warn(whose, runner)
            return nullcontext()
        return runner.running(bins)

    def _warn(self, whose: str, runner: PaddingFreeModel) -> None:
        """Warn once of a model that runs with padding although `padding_free` is true."""
        if self._asked and self._main and whose not in self._warned:
            side, other = ("right", "left") if runner.left else ("left", "right")
            logger.warning(
                "padding_free is true, but the %s runs padded where padding is on the %s: its head reads a position "
                "that padding moves, so its outputs would change without padding. Set padding_side of its "
                "tokenizer to '%s'",
                *(whose, side, other),
            )
        self._warned.add(whose)

    def _bins(self, inputs: Mapping[str, Any]) -> Bins | None:
        """Return where the tokens of a batch go; None where it stays as it is."""
        if BINS in inputs:
            found: Bins | None = inputs[BINS]
            return found
        mask = inputs.get(MASK)
        if mask is None:
            return None
        if self._last is None or self._last[0] is not mask:
            # A batch that was not collated here. On an accelerator the host waits for its mask, once for both models.
            bins = self._find.bins(mask.cpu())
            self._last = mask, None if bins is None else bins.to(mask.device)
        return self._last[1]

    def collating(self, collate: Collate) -> Collate:
        """Return a collator whose batches know their bins, found before they are sent to a device."""
        return AddBins(collate, self._find) if self._runners else collate


@dataclass(frozen=True)
class FindBins:
    """Finds the bins of a batch.

    Attributes:
        hidden: Width of the student.
        most: Largest share of the padded positions that is worth it.
        widest: See `arrange`.
    """

    hidden: int
    most: float
    widest: int | None = None

    def bins(self, mask: Tensor) -> Bins | None:
        """Return the bins for a mask of attention, `(batch, tokens)` or `(batch, texts, tokens)`, on a CPU.

        Returns:
            None where nothing is gained.
        """
        if mask.dim() not in (2, 3):
            return None
        bins = arrange(sequences(mask != 0), self.hidden, self.widest)
        return None if bins is None or bins.share > self.most else bins


@dataclass(frozen=True)
class AddBins:
    """Collates examples, and adds the bins of both models' tokens.

    Attributes:
        collate: Makes the batch.
        find: Finds the bins.
    """

    collate: Collate
    find: FindBins

    def __call__(self, examples: list[Any]) -> Mapping[str, Any]:
        """Return the batch; the bins come last in it, None where there is nothing to gain."""
        batch = dict(self.collate(examples))
        for whose in ("", PREFIX):
            if isinstance(mask := batch.get(f"{whose}{MASK}"), Tensor):
                batch[f"{whose}{BINS}"] = self.find.bins(mask)
        return batch

    def set_epoch(self, epoch: int) -> None:
        """Pass on what `batches.SetEpoch` says: what a collator draws may depend on it."""
        if (told := getattr(self.collate, "set_epoch", None)) is not None:
            told(epoch)


def _width(model: nn.Module) -> int:
    config: Any = getattr(model, "config", None)
    width = None if config is None else getattr(config.get_text_config(), "hidden_size", None)
    return width if isinstance(width, int) else 512


def _positions(configs: Iterable[Any]) -> int | None:
    """Return how many positions all of some models know; None where they do not say.

    A row may have more of them than any example: layers with a table of all positions (GPT-Neo's masks) would fail.
    """
    found = [getattr(one.get_text_config(), "max_position_embeddings", None) for one in configs if one is not None]
    return min((one for one in found if isinstance(one, int) and one > 0), default=None)


def _obstacle(args: TrainingArguments, terms: Terms) -> str | None:
    """Return what needs padded batches, to be read after "but"."""
    if args.torch_compile:
        return "torch_compile would compile anew for every shape"
    names = [name for name, needs in zip(terms.names, terms.needs, strict=True) if needs.looks_inside]
    if names or terms.watch:
        *others, last = names or ["an objective"]
        who = f"{', '.join(others)} and {last} look" if others else f"{last} looks"
        return f"{who} into the models, which needs padded batches"
    return None


def _check_recomputing(runner: PaddingFreeModel, args: TrainingArguments) -> None:
    on = args.gradient_checkpointing or any(getattr(one, "gradient_checkpointing", False) for one in runner.layers)
    if on and not runner.can_recompute:
        raise NeedsPadding("gradient checkpointing would compute its layers again, with padding")
