"""Checks that the pushes at the end of a run will succeed; creates nothing on the Hub."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from huggingface_hub import constants

from hf_distill.run.doctor.finding import CannotCheck, Finding
from hf_distill.run.hub import look_at_rights

if TYPE_CHECKING:
    from hf_distill.run.doctor.opened import Opened


def hub(opened: Opened) -> Iterator[Finding]:
    """Look at the repositories that the run will push to; nothing to say without a push."""
    recipe = opened.recipe
    targets = recipe.teacher.published
    if not recipe.hub.push and targets is None:
        return
    if constants.is_offline_mode():
        raise CannotCheck("the Hub is switched off (HF_HUB_OFFLINE); a run with a push stops at its beginning")
    if recipe.hub.push:
        with recipe.locate("hub"):
            found = look_at_rights(recipe.hub.repo_id, recipe.hub.private, str(recipe.training["output_dir"]))
        yield Finding("hub", "ok", f"student: {found}")
    if targets is not None:
        with recipe.locate("teacher"):
            yield Finding("hub", "ok", f"targets: {look_at_rights(*targets, '', repo_type='dataset')}")
