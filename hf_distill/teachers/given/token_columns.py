"""Read columns of log-probabilities and align them with the tokens of completions; every row is checked."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hf_distill.cache.replay import LEAST
from hf_distill.errors import UserError
from hf_distill.rows.inferred import vocabulary
from hf_distill.teachers.given.token_cells import Cell, Misfit, Token, read_cell

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from hf_distill.models.pair import Pair

logger = logging.getLogger(__name__)

KEY = "columns"
BY_ID = "vLLM writes numbers with return_tokens_as_token_ids: true"
# How far the sum of rounded probabilities may be above 1.
_ROUNDED = 0.01
_BATCH = 1000


@dataclass(frozen=True)
class CompletionTargets:
    """The targets for the completion of a row.

    Attributes:
        tokens: Token ids of the completion, `(tokens,)`.
        top: Most likely tokens at each position, the most likely first, `(tokens, k)`.
        log_probabilities: Natural log-probability of each token in `top`, float64, at least `LEAST`.
        own: Log-probability of each of `tokens`; NaN if the data does not have it.
        first: Index of the first learned token: 1 if there is no prompt before the completion.
        fewest: Position with the fewest given tokens (`k`).
        most: Largest number of given tokens at a position.
    """

    tokens: list[int]
    top: NDArray[np.int64]
    log_probabilities: NDArray[np.float64]
    own: NDArray[np.float64]
    first: int
    fewest: int
    most: int


@dataclass(frozen=True)
class Names:
    """Finds tokens by their text.

    Attributes:
        tokenizer: The student's tokenizer.
        classes: Number of columns of the student's head that are tokens.
    """

    tokenizer: PreTrainedTokenizerBase
    classes: int

    @classmethod
    def of(cls, pair: Pair) -> Names:
        """Return the tokens of a run's student."""
        classes = vocabulary(pair.student, pair.teacher, pair.tokenizer)
        assert classes is not None
        return cls(pair.tokenizer, classes)

    @cached_property
    def _texts(self) -> dict[str, list[int]]:
        """Text -> ids of the tokens with this text."""
        found: dict[str, list[int]] = {}
        written = self.tokenizer.batch_decode(
            [[number] for number in range(self.classes)], clean_up_tokenization_spaces=False
        )
        for number, text in enumerate(written):
            found.setdefault(text, []).append(number)
        for piece, number in self.tokenizer.get_vocab().items():  # also as the vocabulary writes them
            if number < self.classes:
                found.setdefault(piece, [number])
        return found

    def numbers(self, token: Token) -> list[int]:
        """Return the ids that a token can have."""
        return [token] if isinstance(token, int) else self._texts.get(token, [])

    def fits(self, token: Token, number: int) -> bool:
        """Whether a token can have this id; servers write an empty text for the end token."""
        return number in self.numbers(token) or (token == "" and number == self.tokenizer.eos_token_id)

    def read(self, numbers: list[int]) -> str:
        """Return the text of tokens without special tokens and white space, which tokenizers change."""
        text = self.tokenizer.decode(numbers, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return "".join(str(text).split())


def read_tokens(
    splits: Mapping[str, Dataset], beside: Mapping[str, Dataset], columns: Mapping[str, str], names: Names
) -> dict[str, list[CompletionTargets]]:
    """Return the targets of every row of every split.

    Args:
        splits: Splits with `prompt` and `completion`.
        beside: The same rows, with the columns of targets.
        columns: Kind of the targets -> name of its column.
        names: The student's tokens.

    Raises:
        UserError: A column is missing; or a row has other tokens than its completion, or impossible log-probabilities.
    """
    found = {name: _read(split, beside[name], name, columns, names) for name, split in splits.items()}
    most = max(row.most for rows in found.values() for row in rows)
    for name, rows in found.items():
        for at, row in enumerate(rows):
            if row.top.shape[1] < most - 1:  # one more: the token itself, if it is not among the most likely
                raise UserError(
                    f"{_place(at, name)} has {row.top.shape[1]} tokens at position {row.fewest}, and others have "
                    f"{most}; wanted as many at every position of both splits.",
                    key=KEY,
                )
    return found


def _place(at: int, name: str) -> str:
    return f"row {at} (counted from 0, as positions are) of the {name} split"


def _read(
    split: Dataset, beside: Dataset, name: str, columns: Mapping[str, str], names: Names
) -> list[CompletionTargets]:
    for wanted in columns.values():
        if wanted not in beside.column_names:
            raise UserError(
                f"the {name} split has no column '{wanted}' with the teacher's targets; wanted it in train and eval.",
                key=KEY,
            )
    rows: list[CompletionTargets] = []
    others: list[str] = []
    for at, (row, text, prompt, own) in enumerate(_rows(split, beside, columns, names)):
        try:
            cell = read_cell(row)
            tokens = _completion(cell, text, own, names)
            if isinstance(tokens, str):
                others.append(f"{_place(at, name)} has {tokens}")
                continue
            rows.append(_positions(cell, tokens, 0 if prompt else 1, names))
        except Misfit as error:
            raise UserError(f"{_place(at, name)} has {error}.", key=KEY) from None
    if others:
        more = f" ({len(others):,} of {len(split):,} rows are like this)" if len(others) > 1 else ""
        raise UserError(
            f"{others[0]}{more}. Wanted the completion's tokens under the student's tokenizer; if the server cut the "
            f"text in another way, give the numbers of its tokens (token_ids; {BY_ID}).",
            key=KEY,
        )
    ends = set(names.tokenizer.all_special_ids)  # ends of a turn or of a text
    if without := sum(row.tokens[-1] not in ends for row in rows):
        logger.warning(
            "in %s of %s rows of the %s split no log-probabilities are given for the end of the text, so the student "
            "does not learn there where to stop",
            *(f"{without:,}", f"{len(rows):,}", name),
        )
    return rows


def _rows(
    split: Dataset, beside: Dataset, columns: Mapping[str, str], names: Names
) -> Iterator[tuple[dict[str, Any], str, list[int], list[int] | None]]:
    """Yield cells, completion, the prompt's tokens and the completion's tokens.

    The last is None if the end of the prompt and the beginning of the completion are one token.
    """
    from hf_distill.tasks.text_tokens import prompts_and_wholes

    end = names.tokenizer.eos_token_id
    for start in range(0, len(split), _BATCH):
        part = slice(start, start + _BATCH)
        batch, cells = split[part], beside[part]
        made = prompts_and_wholes(names.tokenizer, batch["prompt"], batch["completion"])
        for at, (text, (prompt, whole)) in enumerate(zip(batch["completion"], made, strict=True)):
            own = whole[len(prompt) :] if whole[: len(prompt)] == prompt else None
            if own and own[-1] == end:
                own = own[:-1]
            yield {what: cells[column][at] for what, column in columns.items()}, text, prompt, own


def _completion(cell: Cell, text: str, own: list[int] | None, names: Names) -> list[int] | str:
    """Return the token ids of a completion, or a text that says why the given tokens do not fit it."""
    count, end = len(cell.top), names.tokenizer.eos_token_id
    ended = None if own is None else [*own, *([] if end is None else [end])][:count]
    if cell.tokens is None:
        if own is None:
            return "a completion whose beginning is one token with the end of its prompt"
        if ended is None or count not in (len(own), len(own) + 1) or len(ended) < count or not count:
            return f"{count} positions for a completion of {len(own)} tokens"
        # Equal counts do not prove equal tokens; but the token of the text is nearly always among the most likely.
        lacking = [at for at, token in enumerate(ended) if token not in cell.top[at]]
        if lacking:
            wanted = str(names.tokenizer.decode([ended[lacking[0]]]))
            return f"tokens at position {lacking[0]} of which none is {wanted!r}, the one there in the completion"
        return ended
    likely = ended is not None and own is not None and count in (len(own), len(own) + 1) and len(ended) == count
    if likely and ended and all(names.fits(token, number) for token, number in zip(cell.tokens, ended, strict=True)):
        return ended
    # Other tokens than the tokenizer makes from the text are right too, if their text is the same.
    several = [names.numbers(token) for token in cell.tokens]
    for at, numbers in enumerate(several):
        if not all(0 <= number < names.classes for number in numbers):
            raise Misfit(f"the token {numbers[0]} at position {at}; wanted one below {names.classes:,}")
    unclear = [at for at, numbers in enumerate(several) if len(numbers) != 1]
    if unclear:
        at = unclear[0]
        what = f"any of {len(several[at])} tokens" if several[at] else "not a token"
        return f"the token {cell.tokens[at]!r} at position {at}, which is {what} of the student's tokenizer"
    tokens = [numbers[0] for numbers in several]
    if not tokens or names.read(tokens) != names.read(names.tokenizer(text, add_special_tokens=False)["input_ids"]):
        return f"tokens that read {names.tokenizer.decode(tokens)[:40]!r}, and the completion {text[:40]!r}"
    return tokens


def _positions(cell: Cell, tokens: list[int], first: int, names: Names) -> CompletionTargets:
    """Return the checked targets of a cell.

    Raises:
        Misfit: They cannot be part of a distribution over the tokens.
    """
    counts = np.array([len(some) for some in cell.top])
    if not counts.all():
        raise Misfit(f"no tokens at position {int(counts.argmin())}; wanted the likeliest")
    place = np.repeat(np.arange(len(counts)), counts)
    numbers = np.array(list(_numbers(cell, tokens, names)), dtype=np.int64)
    values = np.array([one for some in cell.log_probabilities for one in some], dtype=np.float64)
    _refuse((numbers < 0) | (numbers >= names.classes), place, numbers, f"a token below {names.classes:,}")
    _refuse(np.isnan(values) | (values > _ROUNDED), place, values, "natural log-probabilities, which are at most 0")
    sums = np.bincount(place, np.exp(values))
    wrong = sums > 1 + _ROUNDED
    _refuse(wrong, np.arange(len(sums)), sums, "log-probabilities whose probabilities sum to 1 at most", "a sum of ")
    order = np.lexsort((numbers, place))
    twice = (np.diff(numbers[order]) == 0) & (np.diff(place[order]) == 0)
    _refuse(twice, place[order][1:], numbers[order][1:], "each token once", "twice the token ")
    own = np.full(len(tokens), np.nan)
    same = numbers == np.array(tokens)[place]
    own[place[same]] = values[same]
    order = np.lexsort((-values, place))
    starts = np.concatenate(([0], np.cumsum(counts)[:-1]))
    kept = order[starts[:, None] + np.arange(counts.min())]
    falling = np.clip(values[kept], LEAST, 0.0)
    return CompletionTargets(tokens, numbers[kept], falling, own, first, int(counts.argmin()), int(counts.max()))


def _numbers(cell: Cell, tokens: list[int], names: Names) -> Iterator[int]:
    own: Sequence[Token] = tokens if cell.tokens is None else cell.tokens
    for at, some in enumerate(cell.top):
        for token in some:
            if isinstance(token, int):
                yield token
            elif token == own[at]:
                yield tokens[at]
            else:
                found = names.numbers(token)
                if len(found) != 1:
                    what = f"any of {len(found)} tokens" if found else "not a token"
                    raise Misfit(
                        f"{token!r} at position {at}, which is {what} of the student's tokenizer; wanted texts that "
                        f"are one token each, or the numbers of tokens ({BY_ID})"
                    )
                yield found[0]


def _refuse(wrong: Any, place: Any, values: Any, wanted: str, found: str = "") -> None:
    if wrong.any():
        at = int(wrong.argmax())
        raise Misfit(f"{found}{values[at]:g} at position {int(place[at])}; wanted {wanted}")
