"""Import classes that a recipe names as `module:Class`, and check that they can be recipe entries."""

from __future__ import annotations

import inspect
import re
import sys
import traceback
from collections.abc import Iterator, Mapping
from importlib import import_module, invalidate_caches
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from hf_distill.errors import UserError, first_line
from hf_distill.metrics.function import is_function
from hf_distill.mistakes import join
from hf_distill.models.adapters import find_adapter
from hf_distill.outside import may_run
from hf_distill.recipe.source_code import class_mistakes, find_file, function_mistake

if TYPE_CHECKING:
    from hf_distill.recipe.recipe import Recipe

Part = TypeVar("Part")

_THERE = "The module must be installed, on PYTHONPATH or beside the recipe."
PLUGIN = re.compile(r"(?P<module>[A-Za-z_][\w.]*):(?P<name>[A-Za-z_]\w*)")


def import_entry(module: str, name: str, base: type[Part], beside: Path | None = None) -> type[Part]:
    """Return a class from a module.

    Args:
        module: Dotted name of the module.
        name: Name of the class.
        base: Required base class.
        beside: The folder of the recipe. It is searched last, so that its modules do not hide installed ones.

    Raises:
        UserError: The module cannot be imported, or the class cannot be a recipe entry.
    """
    mine = _beside(module, beside)
    if mine is not None:
        _find_last(module, mine)
    try:
        outside = import_module(module)
    except (
        Exception,
        SystemExit,
    ) as error:  # the module may do anything on import; the recipe's author gets one line
        raise UserError(_not_imported(module, error)) from error
    _check_same(module, outside, mine)
    found: Any = getattr(outside, name, None)
    if fault := _unfit(found, base):
        raise UserError(f"'{module}:{name}' {fault}")
    entry: type[Part] = found
    return entry


def look_at_entry(
    module: str, name: str, base: type, given: Mapping[str, Any], path: str, beside: Path
) -> tuple[str, list[tuple[str, str]]]:
    """Return where the code of a class is, and what is wrong with its entry as far as its source says. It is not run.

    Args:
        module: Dotted name of the module.
        name: Name of the class.
        base: Required base class.
        given: The keys of the entry.
        path: Key path of the entry.
        beside: The folder of the recipe.
    """
    try:
        file = _source(module, beside)
    except UserError as error:
        return "", [(join(path, "name"), str(error))]
    where = f"{module}:{name}, of {file or 'no file'}"
    return where, [] if file is None else list(class_mistakes(file, module, name, base, given, path))


def _source(module: str, beside: Path) -> Path | None:
    """Return the source of a module, as it would be found; None if it is in no file.

    Raises:
        UserError: There is no such module, or another one of its name is found first.
    """
    mine, installed = _beside(module, beside), find_file(module)
    if mine is not None and installed is not None and installed.resolve() != mine:
        raise UserError(_another(module, mine, installed))
    if mine is None and installed is None and module.partition(".")[0] not in {*sys.builtin_module_names, *sys.modules}:
        raise UserError(f"cannot import '{module}' (there is no such module). {_THERE}")
    return mine or installed


def find_functions(names: object, beside: Path) -> None:
    """Let the modules of metrics that are named as `module:function` be found beside the recipe.

    Args:
        names: `evaluation.metrics` as written, which may be anything.
        beside: The folder of the recipe, which is searched last.

    Raises:
        UserError: Another module of the name of one beside the recipe is found first.
    """
    for name in names if isinstance(names, list) else ():
        match = PLUGIN.fullmatch(name) if isinstance(name, str) else None
        if match is None:
            continue
        if not may_run():
            file = _source(match["module"], beside)
            if file is not None and (fault := function_mistake(file, match["module"], match["name"])):
                raise UserError(fault)
            continue
        mine = _beside(match["module"], beside)
        if mine is not None:
            _find_last(match["module"], mine)
            try:
                outside = import_module(match["module"])
            except (Exception, SystemExit) as error:
                raise UserError(_not_imported(match["module"], error)) from error
            _check_same(match["module"], outside, mine)


def outside_code(recipe: Recipe) -> Iterator[str]:
    """Yield a line for all code from outside that a recipe runs: `my_losses:LogitsL1, of /home/me/my_losses.py`."""
    shown = [where for _, where in recipe.unread]
    for cls in map(type, _entries(recipe)):
        module = cls.__module__
        if module.partition(".")[0] != __name__.partition(".")[0]:
            shown.append(f"{module}:{cls.__qualname__}, of {getattr(sys.modules.get(module), '__file__', 'no file')}")
    for side, source in _trusted(recipe):
        adapter = find_adapter(source)
        base = "" if adapter is None else f" and of its base {adapter.base}"
        shown.append(f"the repository of the {side}'s model {source}{base} (trust_remote_code)")
    metrics = recipe.evaluation.metrics
    shown += [
        f"the metric {name}{_of(recipe, name)}" for name in metrics if name.startswith("evaluate/") or is_function(name)
    ]
    tasks = recipe.evaluation.lm_eval
    shown += [f"what the task {name} of lm_eval names" for name in tasks if name.endswith((".yaml", ".yml"))]
    yield from dict.fromkeys(shown)


def _trusted(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Yield side and model of each entry with `trust_remote_code: true`."""
    teachers: list[Any] = [*recipe.teacher.every_entry()]
    students: list[Any] = [inner for _, one in recipe.students for inner in one.every_entry()]
    sides = [("teacher", one) for one in teachers]
    sides += [("teacher", peer) for one in teachers for peer in getattr(one, "peers", None) or ()]
    sides += [("student", one) for one in students]
    yield from (
        (side, one.model) for side, one in sides if getattr(one, "trust_remote_code", False) and hasattr(one, "model")
    )


def _of(recipe: Recipe, name: str) -> str:
    """Return the file of a metric that is a function, if it is found."""
    match = PLUGIN.fullmatch(name)
    beside = Path(recipe.origin.file).parent if recipe.origin else None
    file = None if match is None else _beside(match["module"], beside) or find_file(match["module"])
    return f", of {file}" if file else ""


def _entries(recipe: Recipe) -> Iterator[Any]:
    students = (inner for _, one in recipe.students for inner in one.every_entry())
    yield from (recipe.task, *students, *recipe.teacher.every_entry())
    if recipe.data.augment is not None:
        yield recipe.data.augment
    yield recipe.completions.backend
    for stage in recipe.plan:
        yield from stage.objectives
    for link in recipe.chain:
        yield from link.objectives


def _beside(module: str, folder: Path | None) -> Path | None:
    """Return the file of a module in the folder of a recipe; None if it does not exist."""
    if folder is None:
        return None
    stem = folder.resolve().joinpath(*module.split("."))
    return next((file for file in (stem.with_suffix(".py"), stem / "__init__.py") if file.is_file()), None)


def _find_last(module: str, file: Path) -> None:
    """Append the folder of a module to `sys.path`, for the module and for what it imports later."""
    place = str(file.parents[module.count(".") + (file.name == "__init__.py")])
    if place not in sys.path:
        sys.path.append(place)
    invalidate_caches()


def _check_same(module: str, outside: ModuleType, mine: Path | None) -> None:
    """Refuse an imported module if another module of this name lies beside the recipe."""
    theirs = getattr(outside, "__file__", None)
    if mine is not None and (theirs is None or Path(theirs).resolve() != mine):
        raise UserError(_another(module, mine, theirs))


def _another(module: str, mine: Path, theirs: object) -> str:
    return (
        f"'{module}' lies beside the recipe ({mine}), but another module of this name is found first or is already "
        f"imported ({theirs}). Rename one of them."
    )


def _not_imported(module: str, error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"importing '{module}' ended the process (exit status {error.code}). A module must not exit on import."
    last = traceback.extract_tb(error.__traceback__)[-1]
    known = isinstance(error, ImportError) or "importlib" in last.filename
    where = "" if known else f" at {last.filename}:{last.lineno}"
    what = f"cannot import '{module}' ({type(error).__name__}: {first_line(error)}{where})."
    return f"{what} {_THERE}" if isinstance(error, ImportError) else what


def _unfit(found: Any, base: type) -> str | None:
    """Return why an imported object cannot be a recipe entry; None if it can."""
    if found is None:
        return "does not exist: the module has no such name."
    if not isinstance(found, type) or not issubclass(found, base):
        return f"is not a subclass of {base.__module__}.{base.__name__}."
    if "__pydantic_validator__" not in vars(found):
        return "is not a recipe entry. Put `@component` (from hf_distill.component) above the class."
    if inspect.isabstract(found):
        missing: Any = getattr(found, "__abstractmethods__", ())
        return f"is abstract: it does not define {', '.join(sorted(missing))}."
    if not isinstance(getattr(found, "name", None), str):
        return "has no name. Add `name: ClassVar[str] = ...` to the class."
    return None
