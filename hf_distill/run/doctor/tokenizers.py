"""Do teacher and student read the same tokens, and do these fit the heads of the models?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from hf_distill.errors import UserError
from hf_distill.models.loading import open_tokenizer
from hf_distill.models.tokenizers import tokenizer_name, vocabulary
from hf_distill.run.doctor.finding import Finding
from hf_distill.run.pairing import PROBE

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from hf_distill.models.pair import Pair
    from hf_distill.run.doctor.opened import Opened

NAME = "tokenizer"


def tokenizers(opened: Opened) -> Iterator[Finding]:
    """Yield how the tokens of teacher and student compare, and whether each model reads the tokens that it knows."""
    for pair in opened.pair.members or (opened.pair,):
        yield from _compared(pair)
    yield from _own(opened)
    if opened.recipe.task.head_kind == "tokens":
        pair = opened.pair
        sides = (
            ("student", pair.student, pair.tokenizer),
            ("teacher", pair.teacher, pair.teacher_tokenizer or pair.tokenizer),
        )
        padded = [text for side in sides if (text := _padding(*side))]
        yield Finding(NAME, "ok", "; ".join(padded) or "both heads have a column for each token, and no others")


def _compared(pair: Pair) -> Iterator[Finding]:
    ours, theirs = pair.tokenizer, pair.teacher_tokenizer
    if theirs is None:
        left = f", of which {len(pair.left_out):,} differ and are not compared" if pair.left_out else ""
        yield Finding(NAME, "ok", f"one for both models: {tokenizer_name(ours)}, {len(ours):,} tokens{left}")
        return
    mine, others = ours.get_vocab(), theirs.get_vocab()
    shared = len(mine.keys() & others.keys())
    alike = "the same" if mine == others else f"{shared / len(mine):.0%} of the student's tokens are the teacher's too"
    counts = [len(_encoded(one)) for one in (ours, theirs)]
    yield Finding(
        NAME,
        "ok",
        f"student {tokenizer_name(ours)}, {len(mine):,} tokens; teacher {tokenizer_name(theirs)}, {len(others):,}: "
        f"{alike}. A sentence of {len(PROBE.split())} words: {counts[0]} and {counts[1]} tokens",
    )
    if (lower := _lowers(ours)) != _lowers(theirs):
        which = ("student", "teacher") if lower else ("teacher", "student")
        yield Finding(
            NAME,
            "warning",
            f"the {which[0]}'s tokenizer ignores case, the {which[1]}'s does not: NO and no are one to it",
            "Expect no more than what is left without case.",
        )


def _own(opened: Opened) -> Iterator[Finding]:
    """Yield a warning for each model that reads the tokens of another tokenizer than its own."""
    recipe, pair = opened.recipe, opened.pair
    read = pair.teacher_tokenizer or pair.tokenizer
    entries = [("teacher", one.source, one.opening, read) for _, one in recipe.teacher.members() if not one.own_inputs]
    entries = [] if pair.members else entries
    if pair.uncut is None:
        entries.append(("student", recipe.student.vocabulary, {}, pair.tokenizer))
    for side, source, opening, used in entries:
        if source is None:
            continue
        try:
            own = open_tokenizer(source, **{key: value for key, value in opening.items() if value})
        except UserError:  # a model without a tokenizer: the run takes the other one's
            yield Finding(NAME, "ok", f"the {side} has no tokenizer of its own")
            continue
        if _encoded(own) != _encoded(used):
            yield Finding(
                NAME,
                "warning",
                f"the {side} reads tokens that its own tokenizer would not make: {PROBE!r} becomes "
                f"{_shown(used)}, by its own {_shown(own)}",
                "Is this the tokenizer that it was trained with?",
            )


def _padding(side: str, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return how many columns of a head stand for no token; empty if none does."""
    columns: int = getattr(config.get_text_config(), "vocab_size", None) or 0
    tokens = vocabulary(tokenizer)
    more = f"the {side}'s head has {columns:,} columns for {tokens:,} tokens: the others are padding, not compared"
    return more if columns > tokens else ""


def _encoded(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    ids: list[int] = tokenizer(PROBE)["input_ids"]
    return ids


def _shown(tokenizer: PreTrainedTokenizerBase) -> str:
    tokens: Any = tokenizer.convert_ids_to_tokens(_encoded(tokenizer)[:6])
    return f"[{' '.join(tokens)} ...]"


def _lowers(tokenizer: PreTrainedTokenizerBase) -> bool:
    return bool(tokenizer("THE END")["input_ids"] == tokenizer("the end")["input_ids"])
