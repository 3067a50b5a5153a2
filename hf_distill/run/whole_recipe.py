"""Returns a recipe with the value of every key, those that it leaves out too."""

from __future__ import annotations

from typing import Any

from hf_distill.errors import UserError
from hf_distill.outside import OnlyRead, only_reading

# Whether it is on follows from the machine.
_OF_MACHINE = ("use_cpu",)


def whole_recipe(text: str) -> dict[str, Any]:
    """Return a stored recipe as plain values, with the defaults of this version where it leaves a key out.

    No code from outside is run. Keys whose default follows from the machine or from the data stay left out, as do those
    of a teacher's own `training`.

    Args:
        text: YAML, as a report has it.

    Returns:
        The recipe; empty if it cannot be read: it is of another version, has classes of one's own, or PyTorch is not
        installed.
    """
    try:
        from hf_distill.recipe.reader import parse_recipe

        with only_reading():
            recipe = parse_recipe(text)
    except (UserError, OnlyRead, ImportError):
        return {}
    from hf_distill.recipe.training_source import default_values
    from hf_distill.recipe.writer import to_plain
    from hf_distill.run.training_defaults import training_defaults

    known = {key: value for key, value in default_values().items() if key not in _OF_MACHINE}
    shared = {**known, **training_defaults(recipe)}
    found = to_plain(recipe, whole=True)
    stages = [{**stage, "training": {**shared, **stage["training"]}} for stage in found.get("stages", ())]
    return {**found, **({"stages": stages} if stages else {}), "training": {**shared, **found["training"]}}
