"""Short forms of counts; and foreign text (names, cells, messages of libraries) made safe to show: no secrets."""

from __future__ import annotations

import logging
import re

# Longest line that is shown. A longer one is cut in the middle, since the end says what to do.
LIMIT = 1500
_END = 500

# Control characters that a terminal obeys, bidirectional marks that change the reading order, and line separators:
# https://trojansource.codes. Joiners are allowed: several scripts and emoji need them.
_ACTIVE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
_SECRETS = re.compile(
    r"""
    (?P<hub>\bhf_)[A-Za-z0-9]{16,}
    | (?P<openai>\bsk-)(?=[\w-]*[0-9])(?=[\w-]*[A-Z])[\w-]{20,}
    | (?P<github>\b(?:gh[opsur]_|github_pat_|glpat-|xox[abprs]-))[\w-]{16,}
    | (?P<amazon>\bAKIA)[0-9A-Z]{16}
    | (?P<google>\bAIza)[\w-]{30,}
    | (?P<web>\beyJ)[\w-]{10,}\.[\w-]{10,}\.[\w-]{5,}
    | (?P<user>://[^\s/:@'"]*:)[^\s/@'"]+(?=@)
    | (?P<header>(?i:authorization)['"]?\s*[:=]\s*['"]?(?:[A-Za-z]+\s+)?)[\w.~+/=-]{6,}
    | (?P<bearer>\bBearer\s+)[\w.~+/=-]{12,}
    | (?P<query>[?&](?i:[\w-]*(?:token|key|sig|signature|secret|password|credential))=)[^&\s'"]+
    """,
    re.VERBOSE,
)


def count(value: float) -> str:
    """Return a count in short form, with K, M or B.

    >>> count(66_955_010), count(17_586), count(512)
    ('67.0 M', '17.6 K', '512')
    """
    for unit, factor in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if value >= factor:
            return f"{value / factor:.1f} {unit}"
    return str(int(value))


def counted(number: int, noun: str, several: str = "") -> str:
    """Return a number with its noun.

    Args:
        number: The number.
        noun: What is counted, for a single one.
        several: The same for several. Default: with an s.

    >>> counted(1, "setting"), counted(1200, "eval row"), counted(2, "entry", "entries")
    ('1 setting', '1,200 eval rows', '2 entries')
    """
    return f"{number:,} {noun if number == 1 else several or f'{noun}s'}"


def is_secret(key: str) -> bool:
    """Return whether the name of a key says that its value is a secret.

    >>> [key for key in ("token", "hub_token", "api_key", "password", "mask_token", "key", "weight") if is_secret(key)]
    ['token', 'hub_token', 'api_key', 'password']
    """
    name = key.lower().replace("-", "_")
    plain = ("token", "password", "passwd", "secret", "apikey", "credentials")
    kinds = tuple(f"{kind}_{what}" for kind in ("api", "access", "auth", "hub", "hf") for what in ("token", "key"))
    return name in plain or name.endswith((*kinds, "_password", "_secret"))


def masked(text: str) -> str:
    """Return a text with tokens, passwords and keys replaced by `...`; their known prefix stays.

    >>> masked("https://me:pa55@host/x.csv?token=abc of hf_0123456789abcdefghij")
    'https://me:...@host/x.csv?token=... of hf_...'
    """
    return _SECRETS.sub(lambda found: f"{found[found.lastgroup or 0]}...", text)


def readable(text: object, limit: int = LIMIT) -> str:
    r"""Return a text as one line for a terminal, a log or a page: escaped, masked, and cut in the middle if long.

    >>> print(readable("a\x1b[31m label\nof two lines"))
    a\x1b[31m label of two lines
    >>> print(readable("x" * 5000, limit=40))
    xxxxxxxxxxxxxxxxxxxxxxxxxxx... (5,000 characters) ...xxxxxxxxxxxxx
    """
    whole = str(text)
    if len(whole) > limit:
        end = min(_END, limit // 3)
        # Mask before cutting: no pattern matches half a token.
        whole = masked(whole) if len(whole) < 10_000_000 else whole
        whole = f"{whole[: limit - end]}... ({len(whole):,} characters) ...{whole[-end:]}"
    whole = re.sub(r"[ \t]*[\r\n]+[ \t]*", " ", whole).replace("\t", " ")
    return _ACTIVE.sub(lambda found: ascii(found[0])[1:-1], masked(whole))


def readable_lines(text: object) -> str:
    """Apply `readable` to each line of a text."""
    return "\n".join(map(readable, re.split(r"\r?\n", str(text))))


class ReadableFormatter(logging.Formatter):
    """Formats log records as `readable` lines."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the message, and the traceback if there is one."""
        return readable_lines(super().format(record))
