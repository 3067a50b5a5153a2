"""Tokens of prompts and of the verbalizers that continue them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hf_distill.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

KEY = "verbalizers"
# Label -> its verbalizers.
Texts = Mapping[str, Sequence[str]]
Tokens = Mapping[str, list[list[int]]]
# How many characters at the end of a prompt decide how what follows is cut into tokens.
END = 64


@dataclass(frozen=True)
class PromptReader:
    """Tokenises prompts and what follows them.

    Attributes:
        tokenizer: The teacher's tokenizer.
        special: Whether it adds special tokens (to plain text; a chat template writes them itself).
        encodes: Whether the model reads the prompt with an encoder, and its decoder writes the verbalizer.
    """

    tokenizer: PreTrainedTokenizerBase
    special: bool
    encodes: bool

    def prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of each text; a decoder's do not end with an end token, since the text goes on."""
        made = self.tokenizer(list(texts), add_special_tokens=self.special, verbose=False)
        found: list[list[int]] = made["input_ids"]
        if self.encodes or not self.special:
            return found
        return [ids[:-1] if ids[-1:] == [self.tokenizer.eos_token_id] else ids for ids in found]

    def opening(self, texts: Texts) -> list[int]:
        """Return the special tokens with which a decoder begins every text, after its start token (BART: `<s>`)."""
        if not self.encodes:
            return []
        some = next(iter(next(iter(texts.values()))))
        whole: list[int] = self.tokenizer(text_target=some)["input_ids"]
        special = set(self.tokenizer.all_special_ids)
        count = next((at for at, token in enumerate(whole) if token not in special), 0)
        return whole[:count]

    def verbalizers(self, texts: Texts, prompt: str) -> Tokens:
        """Return label -> the tokens of its verbalizers.

        For a decoder these are the tokens by which prompt and verbalizer as one text are longer than the prompt.

        Args:
            texts: The verbalizers.
            prompt: A prompt, rendered.

        Raises:
            UserError: A verbalizer has no tokens, or is not apart from the prompt's last ones.
        """
        if self.encodes:
            return {label: [self._written(text, label) for text in some] for label, some in texts.items()}
        return {label: [self._after([prompt], text, label)[0] for text in some] for label, some in texts.items()}

    def check_ends(self, texts: Texts, known: Tokens, ends: Iterable[str]) -> None:
        """Refuse verbalizers that are other tokens after other prompts.

        Args:
            texts: The verbalizers.
            known: Their tokens after one prompt.
            ends: The different ends of all prompts, `END` characters each.

        Raises:
            UserError: A verbalizer is other tokens after one of them.
        """
        different = [] if self.encodes else sorted(ends)
        for label, some in texts.items():
            for text, wanted in zip(some, known[label], strict=True):
                for end, ids in zip(different, self._after(different, text, label), strict=True):
                    if ids != wanted:
                        raise UserError(
                            f"{text!r} is {_shown(self.tokenizer, wanted)} after one prompt and "
                            f"{_shown(self.tokenizer, ids)} after one that ends with {end[-20:]!r}. Let the prompt end "
                            "with the same text in every row.",
                            key=f"{KEY}.{label}",
                        )

    def _written(self, text: str, label: str) -> list[int]:
        ids: list[int] = self.tokenizer(text_target=text, add_special_tokens=False)["input_ids"]
        return _not_empty(ids, text, label)

    def _after(self, prompts: Sequence[str], text: str, label: str) -> list[list[int]]:
        """Return the tokens of a verbalizer after each of the prompts."""
        both = self.prompts([*prompts, *(prompt + text for prompt in prompts)]) if prompts else []
        found = []
        for prompt, alone, whole in zip(prompts, both[: len(prompts)], both[len(prompts) :], strict=True):
            if whole[: len(alone)] != alone:
                same = (at for at, (one, other) in enumerate(zip(alone, whole, strict=False)) if one != other)
                raise UserError(
                    f"the prompt ends with {prompt[-20:]!r}, and the tokenizer joins its end with {text!r} (into "
                    f"{_shown(self.tokenizer, whole[next(same, 0) :])}), so it is not a continuation of the prompt. "
                    "Let the prompt end without a space and the verbalizer begin with it.",
                    key=f"{KEY}.{label}",
                )
            found.append(_not_empty(whole[len(alone) :], text, label))
        return found


def _not_empty(ids: list[int], text: str, label: str) -> list[int]:
    if not ids:
        raise UserError(f"the tokenizer gives no token for {text!r}. Wanted a word.", key=f"{KEY}.{label}")
    return ids


def _shown(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return " ".join(repr(token) for token in tokenizer.convert_ids_to_tokens(list(ids)))


def check_labels(texts: Texts, classes: Sequence[str]) -> None:
    """Refuse verbalizers that are not those of the classes.

    Raises:
        UserError: A class has no verbalizer, or a verbalizer no class.
    """
    if lacking := [name for name in classes if name not in texts]:
        raise UserError(
            f"no verbalizer for {', '.join(lacking)}. Wanted one for each class: {', '.join(classes)}.", key=KEY
        )
    if unknown := [name for name in texts if name not in classes]:
        raise UserError(
            f"the data has no class '{unknown[0]}'. Its classes: {', '.join(classes)}.", key=f"{KEY}.{unknown[0]}"
        )


def check_apart(tokens: Tokens, texts: Texts) -> None:
    """Refuse verbalizers that cannot be told apart, and warn of those that begin with the same token.

    Raises:
        UserError: Two are the same tokens, or one is the beginning of the other, which would be counted twice.
    """
    every = [
        (label, text, tuple(ids)) for label in texts for text, ids in zip(texts[label], tokens[label], strict=True)
    ]
    alike: list[str] = []
    for at, (label, text, ids) in enumerate(every):
        for other, known, before in every[:at]:
            if ids[: len(before)] == before or before[: len(ids)] == ids:
                how = "are the same tokens" if ids == before else "begin with one another"
                raise UserError(
                    f"{known!r} ({other}) and {text!r} ({label}) {how}, so one counts for the other. Choose words of "
                    "which none is the beginning of another.",
                    key=f"{KEY}.{label}",
                )
            if ids[0] == before[0] and label != other:
                alike.append(f"{known!r} ({other}) and {text!r} ({label})")
    if alike:
        logger.warning(
            "verbalizers begin with the same token, so only their later tokens tell the labels apart: %s%s",
            *("; ".join(alike[:3]), f" and {len(alike) - 3} more" if len(alike) > 3 else ""),
        )


def shared_prefix(rows: Iterable[Sequence[int]]) -> list[int]:
    """Return the tokens with which all rows begin; of each row, at least one token is left.

    >>> shared_prefix([[1, 2, 3], [1, 2, 4], [1, 2]])
    [1]
    """
    kept: list[int] | None = None
    for row in rows:
        most = len(row) - 1 if kept is None else min(len(kept), len(row) - 1)
        if kept is None:
            kept = list(row[:most])
        elif list(row[:most]) != kept[:most]:
            most = next(at for at in range(most) if row[at] != kept[at])
        kept = kept[:most]
    return kept or []


def fit(
    text_columns: Mapping[str, str], render: Callable[[Mapping[str, str]], list[int]], limit: int
) -> list[int] | None:
    """Return the tokens of a prompt whose longest text is shortened at its end until it fits.

    Args:
        text_columns: Name -> text of the columns that may be shortened.
        render: Returns the tokens of the prompt with these texts.
        limit: Most tokens.

    Returns:
        The tokens; None if the prompt does not fit without any text.
    """
    texts = dict(text_columns)
    ids = render(texts)
    while len(ids) > limit:
        name = max(texts, key=lambda one: len(texts[one]), default=None)
        if name is None or not texts[name]:
            return None
        # In proportion, and a little less than that: the next round cuts the rest.
        share = max(1 - (len(ids) - limit) / len(ids), 0.5)
        texts[name] = texts[name][: min(int(len(texts[name]) * share), len(texts[name]) - 1)]
        ids = render(texts)
    return ids
