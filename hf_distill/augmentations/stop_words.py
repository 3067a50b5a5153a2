"""English words that carry no meaning of their own, and are not replaced."""

from __future__ import annotations

from functools import cache

# What scikit-learn's list lacks of NLTK's, which the published code of TinyBERT uses: auxiliaries, and the pieces into
# which an apostrophe cuts a word.
_AUXILIARIES = frozenset((
    "theirs", "having", "does", "did", "doing", "just", "should", "won", "don", "ain", "aren", "couldn", "didn",
    "doesn", "hadn", "hasn", "haven", "isn", "ma", "mightn", "mustn", "needn", "shan", "shouldn", "wasn", "weren",
    "wouldn", "s", "t", "d", "ll", "m", "o", "re", "ve", "y",
))  # fmt: skip


@cache
def stop_words() -> frozenset[str]:
    """Return the words in lower case: those of scikit-learn, and pieces of contractions such as `didn`."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    return frozenset(ENGLISH_STOP_WORDS) | _AUXILIARIES
