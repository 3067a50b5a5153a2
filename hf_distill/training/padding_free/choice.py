"""Decides which models of a training run without padding, in which batches, and says why not."""

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

# With `auto`, batches run without padding if they become at least so much smaller. Below that, moving the tokens costs
# about as much time as it saves.
WORTH_IT = 0.1
# Columns of a batch: the one that is read, and the one that is added.
MASK = "attention_mask"
BINS = "bins"


class PaddingFree:
    """Runs the layers of student and teacher without padding, in the batches where that saves time.

    Args:
        args: Training arguments, whose `padding_free` is `"auto"`, true or false.
        student: The student, without a wrapper such as DDP; it may be a PEFT model.
        source: Gives the targets; None if there is no teacher.
        terms: The loss terms.

    Attributes:
        decisions: A line for the user that says what was decided; empty if `padding_free` is false.

        always: Whether no model runs with padding in any batch where that saves anything.

    Raises:
        UserError: `padding_free` is true, and an argument or an objective needs padded batches.
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
        self.always = False
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
        self.always = self._asked and not refused
        self._report(refused)

    def _report(self, refused: Mapping[str, str]) -> None:
        why = "; ".join(f"{whose}: {reason}" for whose, reason in refused.items())
        # There is no batch yet, so the line cannot say which batches will run without padding.
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
        """Context manager for one forward pass: run a model's layers without padding, if that saves enough.

        Args:
            whose: `student`, or the name of one of the source's models.
            inputs: The inputs of the model.
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
        """Warn, once per model, that it runs with padding although `padding_free` is true."""
        if self._asked and self._main and whose not in self._warned:
            side, other = ("right", "left") if runner.left else ("left", "right")
            logger.warning(
                "padding_free is true, but the %s runs with padding if padding is on the %s: its head reads a position "
                "that depends on padding, so its outputs would change without it. Set padding_side of its tokenizer "
                "to '%s'",
                *(whose, side, other),
            )
        self._warned.add(whose)

    def _bins(self, inputs: Mapping[str, Any]) -> Bins | None:
        """Return the bins of a batch; None if it runs with padding."""
        if BINS in inputs:
            found: Bins | None = inputs[BINS]
            return found
        mask = inputs.get(MASK)
        if mask is None:
            return None
        if self._last is None or self._last[0] is not mask:
            # The batch was collated elsewhere. On an accelerator, the host waits for its mask, once for both models.
            bins = self._find.bins(mask.cpu())
            self._last = mask, None if bins is None else bins.to(mask.device)
        return self._last[1]

    def collating(self, collate: Collate) -> Collate:
        """Return a collator that adds the bins to a batch, before it is sent to a device."""
        return AddBins(collate, self._find) if self._runners else collate


@dataclass(frozen=True)
class FindBins:
    """Finds the bins of a batch.

    Attributes:
        hidden: Width of the student.
        most: Bins are used if their share of the padded positions is at most this.
        widest: Largest number of cells in a row, as for `arrange`.
    """

    hidden: int
    most: float
    widest: int | None = None

    def bins(self, mask: Tensor) -> Bins | None:
        """Return the bins for an attention mask on a CPU; None if they would not save enough.

        Args:
            mask: `(batch, tokens)` or `(batch, texts, tokens)`, 0 for padding.
        """
        if mask.dim() not in (2, 3):
            return None
        bins = arrange(sequences(mask != 0), self.hidden, self.widest)
        return None if bins is None or bins.share > self.most else bins


@dataclass(frozen=True)
class AddBins:
    """A collator that adds the bins of both models' tokens to the batch of another collator.

    Attributes:
        collate: The other collator.
        find: Finds the bins.
    """

    collate: Collate
    find: FindBins

    def __call__(self, examples: list[Any]) -> Mapping[str, Any]:
        """Return the batch with its bins as last columns; None in them if they would not save enough."""
        batch = dict(self.collate(examples))
        for whose in ("", PREFIX):
            if isinstance(mask := batch.get(f"{whose}{MASK}"), Tensor):
                batch[f"{whose}{BINS}"] = self.find.bins(mask)
        return batch

    def set_epoch(self, epoch: int) -> None:
        """Pass the epoch on to the other collator, whose random choices may depend on it."""
        if (told := getattr(self.collate, "set_epoch", None)) is not None:
            told(epoch)


def _width(model: nn.Module) -> int:
    config: Any = getattr(model, "config", None)
    width = None if config is None else getattr(config.get_text_config(), "hidden_size", None)
    return width if isinstance(width, int) else 512


def _positions(configs: Iterable[Any]) -> int | None:
    """Return the smallest number of positions of some models; None if their configurations do not say.

    A row of bins must not be longer: layers with a table of all positions (GPT-Neo's masks) would fail.
    """
    found = [getattr(one.get_text_config(), "max_position_embeddings", None) for one in configs if one is not None]
    return min((one for one in found if isinstance(one, int) and one > 0), default=None)


def _obstacle(args: TrainingArguments, terms: Terms) -> str | None:
    """Return why padded batches are needed, to be read after "but"; None if they are not."""
    if args.torch_compile:
        return "torch_compile would compile again for every shape"
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
