"""Make padding harmless: find the side on which it does not change a model's outputs, and pad batches there."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hf_distill.data.collators import AroundCollator, Collate
from hf_distill.data.two_tokenizers import ALIGNED_AT, MARK, PREFIX, SAME
from hf_distill.models.inspection import base_model, evaluating, taken_by, unrounded
from hf_distill.rows.base import RowLayout
from hf_distill.rows.examples import check_batch
from hf_distill.rows.tokens import TargetRows

logger = logging.getLogger(__name__)

# The side on which padding does not change a model's outputs; "none" if it does on both sides.
Side = Literal["right", "left", "none"]
SIDES: tuple[Side, ...] = ("right", "left")
MASK, IDS = "attention_mask", "input_ids"
# Number of text tokens and of padding tokens in the trial.
TEXT, PADDED = 6, 3
# Largest relative difference that counts as rounding. If padding changes an output, the difference is far larger.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
IN_HALF = 0.1


class Padding:
    """Runs models on padded batches so that padding does not change their outputs, whatever side the collator pads.

    Batches are padded on the right: this leaves the positions of a text unchanged, and a causal model cannot see the
    padding. Models that read the last position as the end of a text (XLNet) are padded on the left. A model whose
    outputs depend on padding on either side (ConvBERT, FNet and YOSO ignore the mask in places) runs without padding,
    on texts of equal length together.

    Args:
        models: `student` -> the student, and name -> model of the teachers; without wrappers for distributed training.
        layout: Which logits count.
        whole: Whether a batch must be one forward pass, because objectives read hidden states or attention.
        pad: The token with which batches are padded; the configuration's if left out.

    Attributes:
        sides: `student`, `teacher` -> the side on which it is padded.
        decisions: Lines for the user about what is unusual.
    """

    def __init__(
        self, models: Mapping[str, nn.Module], layout: RowLayout, *, whole: bool, pad: int | None = None
    ) -> None:
        self._layout = layout
        configs: list[Any] = [getattr(base_model(one), "config", None) for one in models.values()]
        self._pad = (
            next((getattr(one, "pad_token_id", None) for one in configs if one is not None), None)
            if pad is None
            else pad
        )
        self.decisions: list[str] = []
        self.sides: dict[str, Side] = {}
        for whose, model in models.items():
            side = side_of(model, layout, pad)
            self.sides[whose] = self._without(whose, model, whole) if side == "none" else side
        # Of a batch that all read; of one that teachers read with a tokenizer of their own.
        self._main: Side = next(iter(self.sides.values()), "right")
        self._own: Side = next((side for whose, side in self.sides.items() if whose != "student"), "right")

    def _without(self, whose: str, model: nn.Module, whole: bool) -> Side:
        name = type(base_model(model)).__name__
        if not whole:
            self.decisions.append(
                f"padding: the outputs of the {whose} ({name}) depend on it, so it runs without: texts of equal length "
                "together, which is slower"
            )
            return "none"
        logger.warning(
            "the outputs of the %s (%s) depend on padding, so results change with the batch size. Set "
            "per_device_train_batch_size and per_device_eval_batch_size to 1, or choose another model",
            *(whose, name),
        )
        return "right"

    def run(
        self, whose: str, model: nn.Module, given: Mapping[str, Any], batch: Mapping[str, Any], *, own: bool = False
    ) -> Any:
        """Run a model on a batch; separately for each length of text if padding would change its outputs.

        Args:
            whose: `student` or `teacher`.
            model: The model.
            given: Its inputs.
            batch: The whole batch, which has the mask even if the model does not take one.
            own: Whether only this model reads the inputs, as with the teacher's own tokens.
        """
        side, ids, mask = self.sides.get(whose, "right"), batch.get(IDS), batch.get(MASK)
        # A batch that several models read is padded on the side of the first.
        apart = own and SAME.removeprefix(PREFIX) not in batch
        there = "left" if (self._own if apart else self._main) == "left" else "right"
        if mask is None and isinstance(ids, Tensor) and self._pad is not None:
            mask = ids != self._pad
        if side == there or not isinstance(mask, Tensor) or mask.dim() != 2:
            return model(**given)
        return by_length(model, given, mask, self._layout)

    def collating(self, collate: Any) -> Any:
        """Return a collator that moves padding to the side that the models need.

        Args:
            collate: Makes batches, padded on any side.
        """
        if isinstance(collate, AroundCollator):  # a cache adds targets after padding has been moved
            return collate.around(self.collating)
        return PadOneSide(collate, self._layout, self._main == "left", self._own == "left", self._pad)


@dataclass(frozen=True)
class PadOneSide:
    """Collates examples, and moves the padding of each to one side.

    Attributes:
        collate: Makes the batch.
        layout: Says which columns belong to tokens.
        left: Whether padding is moved to the left.
        teacher_left: Whether the padding of the teacher's own tokens is moved to the left, if it has its own.
        pad: The token with which targets are padded; None if unknown.
    """

    collate: Collate
    layout: RowLayout
    left: bool
    teacher_left: bool
    pad: int | None = None

    def __call__(self, examples: list[Any]) -> Mapping[str, Any]:
        """Return the batch.

        Raises:
            ValueError: The targets of an encoder-decoder model begin with padding, which its decoder would read; or
                labels with one number per class are not distributions.
        """
        batch = self.collate(examples)
        check_batch(batch, self.layout)
        if isinstance(self.layout, TargetRows) and self.pad is not None:
            _check_targets(batch, self.pad)
        found = _moved(batch, "", self.left, self.layout)
        # The same tokens, under other numbers, stay at the same positions.
        left = self.left if SAME in batch else self.teacher_left
        found |= _moved(batch, PREFIX, left, self.layout)
        if ALIGNED_AT in batch:
            own = MARK in batch
            found[ALIGNED_AT] = _follow(
                {**batch, **found}[ALIGNED_AT], batch, PREFIX if own else "", left if own else self.left
            )
        return {**batch, **found} if found else batch

    def set_epoch(self, epoch: int) -> None:
        """Tell the inner collator the epoch: masks that it draws may depend on it."""
        if (told := getattr(self.collate, "set_epoch", None)) is not None:
            told(epoch)


def _firsts(batch: Mapping[str, Any], prefix: str, left: bool) -> Tensor | None:
    """Return which position of every row comes first when its padding goes to one side; None if nothing moves."""
    mask, ids = (batch.get(f"{prefix}{name}") for name in (MASK, IDS))
    if not isinstance(mask, Tensor) or not isinstance(ids, Tensor) or mask.shape != ids.shape or not mask.numel():
        return None
    real = mask != 0
    if bool(real[..., -1 if left else 0].all()):
        return None
    # Position of the first real token, or the one after the last. A row with only padding is not moved.
    return mask.shape[-1] - real.flip(-1).int().argmax(-1) if left else real.int().argmax(-1)


def _follow(positions: Tensor, batch: Mapping[str, Any], prefix: str, left: bool) -> Tensor:
    """Return positions of tokens, `(batch, ...)`, where these are when padding goes to one side; -1 stays."""
    first = _firsts(batch, prefix, left)
    if first is None:
        return positions
    tokens = batch[f"{prefix}{MASK}"].shape[-1]
    moved = (positions - first.view(-1, *(1,) * (positions.dim() - 1)).to(positions)) % tokens
    return torch.where((positions >= 0) & (positions < tokens), moved, positions)


def _moved(batch: Mapping[str, Any], prefix: str, left: bool, layout: RowLayout) -> dict[str, Tensor]:
    """Return the columns that change when the padding of every row goes to one side."""
    first = _firsts(batch, prefix, left)
    if first is None:
        return {}
    mask = batch[f"{prefix}{MASK}"]
    tokens = mask.shape[-1]
    places = (torch.arange(tokens, device=mask.device) + first.unsqueeze(-1)) % tokens
    found = {}
    for name, value in batch.items():
        if not isinstance(value, Tensor) or not name.startswith(prefix):
            continue
        if name in layout.position_columns:
            found[name] = _follow(value, batch, prefix, left)  # positions wrap around as the tokens do
        elif value.shape[: mask.dim()] == mask.shape and (prefix or _goes_with_tokens(name, layout)):
            index = places.view(*places.shape, *(1,) * (value.dim() - mask.dim()))
            found[name] = value.take_along_dim(index, mask.dim() - 1)
    return found


def _goes_with_tokens(name: str, layout: RowLayout) -> bool:
    """Return whether a column has a value per token; labels of several classes can have the same shape by chance."""
    if name.startswith((PREFIX, "decoder_")):
        return False
    return name in layout.token_columns or name not in layout.columns


def _check_targets(batch: Mapping[str, Any], pad: int) -> None:
    """Refuse targets that are padded on the left, since a decoder has no mask for them."""
    labels, said = batch.get("labels"), batch.get("decoder_input_ids")
    if not isinstance(labels, Tensor) or not isinstance(said, Tensor) or labels.shape != said.shape:
        return
    leading = (labels < 0).int().cumprod(-1).sum(-1)
    for row in ((leading > 0) & (leading < labels.shape[-1])).nonzero()[:, 0].tolist():
        # Labels of a prompt that are masked on purpose have tokens before them.
        if bool((said[row, 1 : int(leading[row]) + 1] == pad).all()):
            raise ValueError(
                "labels are padded on the left, and the decoder would read that padding. Collate with a tokenizer that "
                "pads on the right: tokenizer.padding_side = 'right'."
            )


# ---- Running without padding -----------------------------------------------------------------------------------------


def by_length(model: nn.Module, given: Mapping[str, Any], mask: Tensor, layout: RowLayout) -> dict[str, Tensor]:
    """Run a model on the texts of each length separately, without padding, and return the outputs of the whole batch.

    Args:
        model: The model.
        given: Its inputs.
        mask: 0 for padding, `(batch, tokens)`.
        layout: Names the outputs to return. They are 0 at padding.
    """
    real = mask != 0
    first = real.int().argmax(-1)
    lengths = real.shape[1] - real.flip(-1).int().argmax(-1) - first
    found: dict[str, Tensor] = {}
    for length in torch.unique(lengths).tolist():
        rows = (lengths == length).nonzero()[:, 0]
        places = first[rows].unsqueeze(-1) + torch.arange(length, device=mask.device)
        cells = (rows.unsqueeze(-1), places)
        outputs = model(**{name: _part(value, mask, rows, cells) for name, value in given.items()})
        for name in layout.outputs:
            answer = outputs[name]
            if name not in found:
                width = answer.shape[2:] if layout.outputs_by_token else answer.shape[1:]
                found[name] = answer.new_zeros(*(mask.shape if layout.outputs_by_token else mask.shape[:1]), *width)
            found[name] = found[name].index_put(cells if layout.outputs_by_token else (rows,), answer)
    return found


def _part(value: Any, mask: Tensor, rows: Tensor, cells: tuple[Tensor, Tensor]) -> Any:
    if not isinstance(value, Tensor) or value.shape[:1] != mask.shape[:1]:
        return value
    return value[cells] if value.shape[:2] == mask.shape else value[rows]


# ---- Trying it out ---------------------------------------------------------------------------------------------------


def side_of(model: nn.Module, layout: RowLayout, pad: int | None = None) -> Side:
    """Return the side on which padding does not change a model's outputs; "right" if it cannot be tried out.

    Args:
        model: The model with its weights, wrapped or not.
        layout: Which of its outputs count.
        pad: The token with which batches are padded; the configuration's if left out.
    """
    config: Any = getattr(base_model(model), "config", None)
    if config is None:
        return "right"
    try:
        config = config.get_text_config()
        pad = config.pad_token_id if pad is None else pad
        if pad is None:  # such a model is given no padded batch
            return "right"
        with evaluating(model), unrounded(model), torch.no_grad(), _own_chance(model):
            alone = _answer(model, layout, config, pad, None)
            return next((side for side in SIDES if _same(alone, _answer(model, layout, config, pad, side))), "none")
    # Model code may raise anything on unexpected inputs; if that matters, training will raise it again.
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError, AssertionError, StopIteration):
        return "right"


@contextmanager
def _own_chance(model: nn.Module) -> Iterator[None]:
    """Context manager: restore torch's random state afterwards, since some models draw numbers (Reformer's hashes)."""
    devices = {one.device for one in model.parameters() if one.device.type == "cuda"}
    with torch.random.fork_rng(devices=sorted(devices, key=str)):
        yield


def _answer(model: nn.Module, layout: RowLayout, config: Any, pad: int, side: Side | None) -> Tensor:
    """Return the outputs that count for a short text, `(1, width)` or `(1, tokens of the text, width)`."""
    torch.manual_seed(0)
    special = {pad, config.pad_token_id, config.bos_token_id, config.eos_token_id}
    eos = config.eos_token_id
    plain = [number for number in range(min(config.vocab_size, TEXT + len(special) + 1)) if number not in special]
    # Some models find the end of a text by this token; for others it is an ordinary one.
    ids = [*plain[: TEXT - 1], eos if isinstance(eos, int) and eos != pad else plain[-1]]
    before, after = (PADDED if side == one else 0 for one in ("left", "right"))
    device = next(model.parameters()).device
    row = torch.tensor([[pad] * before + ids + [pad] * after], device=device)
    mask = torch.tensor([[0] * before + [1] * len(ids) + [0] * after], device=device)
    inputs: dict[str, Any] = {IDS: row, MASK: mask, "use_cache": False}
    if isinstance(layout, TargetRows):
        inputs["decoder_input_ids"] = torch.tensor([ids[:2]], device=device)
    takes = taken_by(model)
    # `forward` instead of a call, so that hooks of the user do not see this trial.
    answer: Tensor = model.forward(**{name: value for name, value in inputs.items() if name in takes})[
        layout.outputs[0]
    ]
    return answer[:, before : before + len(ids)] if layout.outputs_by_token and layout.token_columns else answer


def _same(wanted: Tensor, found: Tensor) -> bool:
    exact = torch.promote_types(wanted.dtype, torch.float32)
    tolerance = TOLERANCE.get(wanted.dtype, IN_HALF)
    difference = (wanted.to(exact) - found.to(exact)).abs().max()
    return bool(difference <= tolerance * wanted.abs().max().to(exact)) or bool(wanted.isnan().any())
