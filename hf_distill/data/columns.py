"""Find the column of each role (`text`, `label`, ...) in each split."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from hf_distill.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from hf_distill.data.section import Data

logger = logging.getLogger(__name__)

Columns = Mapping[str, str | int]


def default_columns(data: Data, names: Mapping[str, list[str]], roles: Mapping[str, bool]) -> Columns:
    """Return role -> column as the recipe says; for CoNLL files the default is words first, tags last.

    Args:
        data: The recipe's section.
        names: Split -> its columns.
        roles: The task's column roles.
    """
    numbered = all(name.isdigit() for some in names.values() for name in some)
    if data.columns or not numbered or "tokens" not in roles:
        return {role: one for role, one in data.columns.items() if not isinstance(one, list)}
    widths = {len(some) for some in names.values()}
    return {"tokens": 0, "tags": -1} if min(widths) > 1 else {"tokens": 0}


def find_columns(
    columns: Mapping[str, list[str]], asked: Columns, roles: Mapping[str, bool]
) -> dict[str, dict[str, str]]:
    """Return column -> role for each split; a role that is not required may be missing in a split.

    Args:
        columns: Split -> its columns.
        asked: Role -> column, by name, or by number for files without a header; -1 is the last.
        roles: Role -> whether the task must have it.

    Raises:
        UserError: One line for each missing column.
    """
    found: dict[str, dict[str, str]] = {split: {} for split in columns}
    mistakes: list[UserError] = []
    # Roles that the recipe names come first: their columns are not available to roles found by their own name.
    for role in sorted(roles, key=lambda role: role not in asked):
        required, named = roles[role], role in asked
        key = f"columns.{role}" if named else "columns"
        places = {split: place(asked.get(role, role), names) for split, names in columns.items()}
        without = [split for split, found_at in places.items() if found_at is None]
        if without and (required or (named and len(without) == len(columns))):
            mistakes.append(_no_column(asked.get(role, role), role, without[0], columns[without[0]], key))
            continue
        if without and named:
            logger.warning("the %s split has no column '%s' and goes without %s", without[0], asked[role], role)
        for split, wanted in places.items():
            if wanted is None or (wanted in found[split] and not named and not required):
                continue
            if wanted in found[split]:
                mistakes.append(
                    UserError(f"'{wanted}' is already the column of the role '{found[split][wanted]}'.", key=key)
                )
                break
            found[split][wanted] = role
    if mistakes:
        # With a wrong delimiter every column is missing: report it once.
        read = all(_delimiter(names) == "" for names in columns.values())
        raise UserError.together(mistakes if read else mistakes[:1])
    return found


def place(wanted: str | int, names: list[str]) -> str | None:
    """Return the name of a column, given by name or number; None if the split does not have it."""
    if isinstance(wanted, str):
        return wanted if wanted in names else None
    if not all(name.isdigit() for name in names):  # the file has a header
        return None
    return names[wanted] if -len(names) <= wanted < len(names) else None


def _no_column(wanted: str | int, role: str, split: str, known: list[str], key: str) -> UserError:
    if isinstance(wanted, int):
        return _no_number(wanted, split, known, key)
    hint = did_you_mean(wanted, known) + f" Say which one: columns: {{{role}: ...}}."
    return UserError(
        f"the {split} split has no column '{wanted}' for the role '{role}'.{_delimiter(known) or hint}", key=key
    )


def _no_number(wanted: int, split: str, known: list[str], key: str) -> UserError:
    if all(name.isdigit() for name in known):
        return UserError(f"the {split} split has {len(known)} columns, numbered from 0: no {wanted}.", key=key)
    hint = f"Write a name instead: {', '.join(known)}."
    return UserError(f"columns have numbers only in CoNLL files, and in CSV and TSV without a header. {hint}", key=key)


def _delimiter(columns: list[str]) -> str:
    signs = [sign for sign in ",;\t|" if sign in columns[0]] if len(columns) == 1 else []
    return f" Its delimiter seems to be {signs[0]!r}; wanted commas, or tabs in a .tsv file." if signs else ""
