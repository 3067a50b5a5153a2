"""Do teacher and student read the same tokens, and do the tokens fit the models' vocabularies?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from hf_distill.models.tokenizers import tokenizer_name
from hf_distill.run.doctor.finding import Finding

if TYPE_CHECKING:
    from hf_distill.run.doctor.opened import Opened

NAME = "tokenizer"


def tokenizers(opened: Opened) -> Iterator[Finding]:
    """Yield how the vocabularies of teacher and student compare."""
    pair = opened.pair
    ours = pair.tokenizer
    for other in [one.teacher_tokenizer for one in pair.members] or [pair.teacher_tokenizer]:
        if other is None:
            yield Finding(NAME, "ok", f"both models read {tokenizer_name(ours)}, {len(ours):,} tokens")
            continue
        mine, theirs = ours.get_vocab(), other.get_vocab()
        shared = len(mine.keys() & theirs.keys())
        yield Finding(
            NAME,
            "ok",
            f"student {tokenizer_name(ours)}, {len(mine):,} tokens, teacher {tokenizer_name(other)}, {len(theirs):,}: "
            f"{shared / len(mine):.0%} of the student's tokens are also the teacher's",
        )
