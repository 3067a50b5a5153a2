"""Which column plays which role."""

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
    """Return role -> column as the recipe says it; of CoNLL's columns the first are words, the last tags.

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
    """Return column -> role for each split; a role that is not required may be missing in one of them.

    Args:
        columns: Split -> its columns.
        asked: Role -> column, by name or, of files without a header, by number; -1 is the last.
        roles: Role -> whether the task must have it.

    Raises:
        UserError: A line for each column that is not there.
    """
    found: dict[str, dict[str, str]] = {split: {} for split in columns}
    mistakes: list[UserError] = []
    # A column that a recipe names for one role is not that of another by its name alone.
    for role in sorted(roles, key=lambda role: role not in asked):
        required, named = roles[role], role in asked
        key = f"columns.{role}" if named else "columns"
        places = {split: _place(asked.get(role, role), names) for split, names in columns.items()}
        without = [split for split, place in places.items() if place is None]
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
                    UserError(f"'{wanted}' is the column of the role '{found[split][wanted]}' already.", key=key)
                )
                break
            found[split][wanted] = role
    if mistakes:
        # A wrong delimiter takes all columns away: one mistake.
        read = all(_delimiter(names) == "" for names in columns.values())
        raise UserError.together(mistakes if read else mistakes[:1])
    return found


def _place(wanted: str | int, names: list[str]) -> str | None:
    """Return the name of a column; None where there is none."""
    if isinstance(wanted, str):
        return wanted if wanted in names else None
    if not all(name.isdigit() for name in names):
        return None  # it has a header
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
    hint = f"Its columns have names: {', '.join(known)}."
    return UserError(f"columns go by number only in CSV and TSV without a header, and in CoNLL's. {hint}", key=key)


def _delimiter(columns: list[str]) -> str:
    signs = [sign for sign in ",;\t|" if sign in columns[0]] if len(columns) == 1 else []
    return f" Its delimiter seems to be {signs[0]!r}; wanted commas, or tabs in a .tsv file." if signs else ""
