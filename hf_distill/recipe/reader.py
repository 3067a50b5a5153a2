"""Read YAML and `key=value` overrides into a `Recipe`; all mistakes are reported at once."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from hf_distill.augmentations import AUGMENTATIONS, Augmentation
from hf_distill.completions.backends import BACKENDS, Backend
from hf_distill.completions.section import Completions
from hf_distill.data.example_columns import EXAMPLE_ROLES
from hf_distill.data.section import Data
from hf_distill.errors import FieldError, UserError, did_you_mean
from hf_distill.export.section import Export
from hf_distill.metrics.section import Evaluation
from hf_distill.mistakes import component_of, describe, explain, glued_key, join, unknown_key
from hf_distill.objectives import OBJECTIVES, PRESETS, Objective
from hf_distill.objectives.presets import ON_OWN_TEXTS
from hf_distill.outside import OnlyRead, may_run
from hf_distill.recipe.document import Document, document_of, read_document
from hf_distill.recipe.overrides import apply_overrides
from hf_distill.recipe.plugins import PLUGIN, find_functions, import_entry, look_at_entry
from hf_distill.recipe.recipe import (
    TWO_CHAINS,
    TWO_STUDENTS,
    Generations,
    Hub,
    Link,
    Recipe,
    ReportOptions,
    Stage,
)
from hf_distill.recipe.training_section import OF_CHAIN, SHARED, belongs_in_training, training_mistakes
from hf_distill.recipe.writer import objective_entries
from hf_distill.students import STUDENTS, Student
from hf_distill.tasks import TASKS, Task
from hf_distill.teachers import TEACHERS, Teacher

Part = TypeVar("Part")

SECTIONS: dict[str, type] = {
    "data": Data,
    "completions": Completions,
    "evaluation": Evaluation,
    "report": ReportOptions,
    "export": Export,
    "hub": Hub,
}
# Section -> its key that is an entry of a table, with the table and its base class.
INSIDE: dict[str, tuple[str, Mapping[str, type], Any]] = {
    "data": ("augment", AUGMENTATIONS, Augmentation),
    "completions": ("backend", BACKENDS, Backend),
}
STUDENT: Any = Student  # mypy does not accept an abstract class as a type argument
# A preset is replaced by its objectives when the recipe is read.
SECTION_KEYS = [*(key for key in Recipe.__annotations__ if key not in ("origin", "places", "unread")), "preset"]
STAGE_KEYS = [*Stage.__annotations__, "preset"]
# Beside the keys of its student.
LINK_KEYS = [*(key for key in Link.__annotations__ if key != "student"), "preset"]
REQUIRED = {
    "task": f"a Hub pipeline tag: {', '.join(TASKS)}",
    "data": "where the examples come from, such as {path: nyu-mll/glue, name: sst2}",
    "teacher": "the model to learn from, such as {name: pretrained, model: ...}",
    "student": "the model to train, such as {name: pretrained, model: ...}",
    "objectives": "a list of what is compared, such as [{name: kl, temperature: 2.0}]",
    "training.output_dir": "the directory for the student and its report",
}

# Key path of an objective.
OBJECTIVE = re.compile(r"(^|\.)objectives\[\d+\]$")
# What a recipe may have in place of a required key.
INSTEAD = {"objectives": ("preset", "stages"), "student": ("chain",)}


def load_recipe(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe, without opening its models, data or devices.

    Args:
        path: A YAML file. Local paths in it are relative to the current directory.
        overrides: `section.key=value`, values in YAML, list entries by number: `objectives.0.weight=0.7`.

    Raises:
        UserError: One line for each mistake: `file:line: key: what was wanted, what was found, what to do`.
        OnlyRead: Code from outside may not run now (`outside.only_reading`), and the recipe cannot be built without it.
    """
    document = read_document(os.fspath(path))
    apply_overrides(document, overrides)
    return _Reading(document).recipe()


def parse_recipe(text: str, file: str = "recipe.yaml") -> Recipe:
    """Return a recipe from its text, as `load_recipe` reads it from a file.

    Args:
        text: YAML, such as `dump_recipe` returns.
        file: How messages call it; classes of one's own are looked for beside it.
    """
    return _Reading(document_of(lambda: text, file)).recipe()


class _Reading:
    """The reading of one recipe: builds its objects and collects its mistakes."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.data = document.data
        for path, given in (("", self.data), *_listed(self.data, "stages"), *_listed(self.data, "chain")):
            if given.get("objectives") is None:
                # A mistake in an objective of the preset is reported with this hint.
                preset, place = join(path, "preset"), join(path, "objectives")
                if preset in document.overrides:
                    document.overrides[place] = document.overrides[preset]
                elif preset in document.lines:
                    document.lines[place] = document.lines[preset]
                if (name := given.get("preset")) in list(PRESETS):
                    document.hints[place] = (
                        f" It comes from preset '{name}'. In its place, write: objectives: {_spelled(name)}"
                    )
        self.origin = document.origin
        self.mistakes: list[tuple[str, str]] = []
        self.unread: list[tuple[str, str]] = []

    def add(self, path: str, message: str) -> None:
        """Record a mistake at a key path."""
        self.mistakes.append((path, message))

    def recipe(self) -> Recipe:
        """Build the recipe.

        Raises:
            UserError: The recipe has mistakes.
        """
        for key in self.data:
            if key not in SECTION_KEYS:
                inside = f"unknown key. It belongs in training: 'training.{key}'."
                self.add(key, inside if belongs_in_training(key) else unknown_key(key, SECTION_KEYS))
        parts: dict[str, Any] = {
            "task": self.component("task", self.data.get("task"), TASKS, Task),
            "teacher": self.component("teacher", self.data.get("teacher"), TEACHERS, Teacher),
            **self.students(),
            "objectives": self.objectives("", self.data),
            "stages": self.stages(),
            "training": self.training("training", self.data.get("training"), {}),
        }
        self.functions(self.data.get("evaluation"))
        parts |= {key: self.section(key, cls) for key, cls in SECTIONS.items() if key in self.data}
        parts |= {key: self.inside(key, parts[key]) for key in INSIDE if key in parts}
        if "tokenizer" in self.data:
            parts["tokenizer"] = self.validate(str, self.data["tokenizer"], "tokenizer")
        self.required()
        self.data_keys(parts["task"])
        if lines := self.document.messages(self.mistakes):
            raise UserError(*lines)
        if any(not OBJECTIVE.search(path) for path, _ in self.unread) or self.is_bare():
            raise OnlyRead(where for _, where in self.unread)
        return Recipe(**parts, origin=self.origin, unread=tuple(self.unread))

    def is_bare(self) -> bool:
        """Return whether a list of objectives has none that was read."""
        lists = Counter(path.rpartition("[")[0] for path, _ in self.unread)
        return any(count == len(_at(self.data, path)) for path, count in lists.items())

    def functions(self, evaluation: Any) -> None:
        """Let metrics that are functions be found beside the recipe; record why one cannot."""
        try:
            find_functions((evaluation or {}).get("metrics"), Path(self.origin.file).parent)
        except UserError as error:
            self.add("evaluation.metrics", str(error))
        except AttributeError:  # not a mapping, which is reported where it is read
            return

    def required(self) -> None:
        """Record the required keys that are missing."""
        for path, wanted in REQUIRED.items():
            section, _, key = path.partition(".")
            value = self.data.get(section)
            if key:
                # A section that is not a mapping has been reported already.
                value = value.get(key) if isinstance(value, dict) else None if value is None else "?"
            if any(self.data.get(other) is not None for other in INSTEAD.get(path, ())):
                continue
            if value is None or value == "":
                self.add(path, f"missing. Wanted: {wanted}.")

    def validate(self, cls: type[Part], data: Any, path: str, **built: Any) -> Part | None:
        """Return `data` as an instance of `cls`; if that fails, record the mistakes and return None.

        Args:
            cls: Class of a section or an entry.
            data: Plain data from the recipe.
            path: Key path of the data.
            **built: Fields that are objects already.
        """
        try:
            if built:
                return cls(**{**data, **built})
            # As JSON, since pydantic's strict mode then takes a mapping for a dataclass and a list for a tuple, but
            # still no text for a number.
            return TypeAdapter(cls).validate_json(json.dumps(data))
        except FieldError as error:
            self.mistakes += [(join(path, where) if where else path, what) for where, what in error.wrong]
        except ValidationError as error:
            self.mistakes += explain(error, data, path, cls)
        except Exception as error:  # a class from outside may raise anything in its checks
            if cls.__module__.partition(".")[0] == __name__.partition(".")[0]:
                raise
            self.add(path, f"{cls.__name__} raised {type(error).__name__}: {error}")
        return None

    def section(self, key: str, cls: type[Part]) -> Part | None:
        """Return a section that is one fixed dataclass."""
        value = self.data[key]
        if isinstance(value, dict):
            built = INSIDE[key][0] if key in INSIDE else None
            return self.validate(cls, {name: one for name, one in value.items() if name != built}, key)
        if value is not None or key not in REQUIRED:  # else it is reported as missing
            hint = f" Write {{path: {value}}}." if cls is Data and isinstance(value, str) else ""
            self.add(key, f"wanted a mapping (key: value), found {describe(value)}.{hint}")
        return None

    def inside(self, section: str, made: Any) -> Any:
        """Return a section with the entry in it, which is one of a table."""
        given, (key, table, base) = self.data.get(section), INSIDE[section]
        if not isinstance(given, dict) or given.get(key) is None:
            return made
        entry = self.component(join(section, key), given[key], table, base)
        return made if made is None or entry is None else replace(made, **{key: entry})

    def component(self, path: str, value: Any, table: Mapping[str, type[Part]], base: type[Part]) -> Part | None:
        """Return an entry of one of the four tables, given as a mapping with a name or as just the name."""
        if value is None and path in REQUIRED:
            return None
        short = isinstance(value, str)
        if short:
            value = {"name": value}
        known = f"Known: {', '.join(table)}; or module:Class."
        if not isinstance(value, dict):
            self.add(path, f"wanted a mapping {{name: ...}} or a name, found {describe(value)}. {known}")
            return None
        name = value.get("name")
        if not isinstance(name, str):
            what = f"wanted text, found {describe(name)}." if "name" in value else "missing."
            self.add(join(path, "name"), f"{what} {known}")
            return None
        given = {key: item for key, item in value.items() if key != "name"}
        if name not in table and not may_run() and (match := PLUGIN.fullmatch(name)):
            beside = Path(self.origin.file).parent
            where, mistakes = look_at_entry(match["module"], match["name"], base, given, path, beside)
            self.mistakes += mistakes
            self.unread.append((path, where))
            return None
        cls = table.get(name) or self.outside(name, path if short else join(path, "name"), table, base)
        if cls is None:
            return None
        if isinstance(given.get("training"), dict) and "training" in getattr(cls, "__pydantic_fields__", ()):
            elsewhere = {"output_dir": f"The directory of the result is {path}.output_dir."}
            self.training(join(path, "training"), given["training"], elsewhere)
        inner = self.nested(cls, given, path, table, base)
        return None if None in inner.values() else self.validate(cls, given, path, **inner)

    def nested(
        self, cls: type, given: Mapping[str, Any], path: str, table: Mapping[str, type[Part]], base: type[Part]
    ) -> dict[str, Any]:
        """Return what is built first inside an entry, by its field; None for what is wrong.

        These are entries (`teacher`, `student`, lists of `teachers` and `peers`, `objectives`) and, beside them,
        settings of several keys.
        """
        fields = getattr(cls, "__pydantic_fields__", {})
        found: dict[str, Any] = {}
        for key in ("teacher", "student"):
            if key in fields and (key in given or fields[key].is_required()):
                found[key] = self.component(join(path, key), given.get(key), table, base)
        lists: dict[str, tuple[Any, Any]] = {"teachers": (table, base), "peers": (STUDENTS, Student)}
        for key, (known, kind) in lists.items():
            several = given.get(key) if key in fields else None
            if isinstance(several, list) or (isinstance(several, dict) and key == "teachers"):
                named = several.items() if isinstance(several, dict) else enumerate(several)
                read = {at: self.component(join(join(path, key), at), one, known, kind) for at, one in named}
                entries = read if isinstance(several, dict) else list(read.values())
                found[key] = None if None in read.values() else entries
        if "objectives" in fields and "objectives" in given:
            found["objectives"] = self.objectives(path, {"objectives": given["objectives"]})
        if found:
            # pydantic takes a mapping for a dataclass from JSON only, and what is built already is not JSON.
            for key, value in given.items():
                held = component_of(cls, key)
                if key not in found and isinstance(value, dict) and held is not None:
                    found[key] = self.validate(held, value, join(path, key))
        return found

    def outside(self, name: str, path: str, table: Mapping[str, type[Part]], base: type[Part]) -> type[Part] | None:
        """Return the class `module:Class`; if that fails, record why and return None."""
        kind = base.__name__.lower()
        match = PLUGIN.fullmatch(name)
        if match is None:
            hint = did_you_mean(name, table)
            if kind in ("teacher", "student") and "Did you" not in hint:
                hint += f" A model goes under 'model': {{name: pretrained, model: {name}}}."
            self.add(path, f"unknown {kind} '{name}'.{hint}")
            return None
        try:
            return import_entry(match["module"], match["name"], base, Path(self.origin.file).parent)
        except UserError as error:
            self.add(path, str(error))
        return None

    def objectives(self, path: str, given: Mapping[str, Any]) -> tuple[Objective, ...]:
        """Return the objectives of the recipe or a stage; at least one must have a weight above 0."""
        value, place = given.get("objectives"), join(path, "objectives")
        if given.get("preset") is not None:
            writes = self.student_writes(given)
            return self.preset(join(path, "preset"), given["preset"], alone=value is None, writes=writes)
        if not isinstance(value, list):
            if value is not None:
                hint = f" Write [{value}]." if isinstance(value, str) else ""
                self.add(place, f"wanted a list, each entry after '- ', found {describe(value)}.{hint}")
            return ()
        if not value:
            self.add(place, "an empty list. Wanted: at least one, such as {name: kl, temperature: 2.0}.")
        base: Any = Objective  # mypy does not accept an abstract class as a type argument
        found = [self.component(join(place, i), item, OBJECTIVES, base) for i, item in enumerate(value)]
        for index, item in enumerate(found):
            if item is not None and item in found[:index]:
                first = join(place, found.index(item))
                self.add(join(place, index), f"the same as {first}. Keep one; its weight can be larger.")
        built = tuple(item for item in found if item is not None)
        if built and len(built) == len(value) and not any(item.has_weight for item in built):
            self.add(place, "every weight is 0, so there is nothing to train on. Give one a weight above 0.")
        return built

    def preset(self, path: str, name: Any, alone: bool, writes: bool) -> tuple[Objective, ...]:
        """Return the objectives of a preset."""
        if not isinstance(name, str):
            self.add(path, f"wanted text, found {describe(name)}. Known: {', '.join(PRESETS)}.")
        elif name not in PRESETS:
            self.add(path, f"unknown preset '{name}'.{did_you_mean(name, PRESETS)}")
        elif not alone:
            self.add(path, f"given together with objectives. Keep one: '{name}' is {_spelled(name)}.")
        elif name in ON_OWN_TEXTS and not writes:
            self.add(path, f"'{name}' is for texts that the student writes. Add completions: {ON_OWN_TEXTS[name]}.")
        else:
            return PRESETS[name]
        return ()

    def student_writes(self, stage: Mapping[str, Any]) -> bool:
        """Whether the student writes texts in a stage, or in the recipe, alone or with the teacher."""
        given = [one for one in (stage.get("completions"), self.data.get("completions")) if isinstance(one, dict)]
        return next((one["by"] for one in given if "by" in one), "data") in ("student", "mixture")

    def students(self) -> dict[str, Any]:
        """Return the fields of a recipe that say which models are trained: one, several in a chain, or generations."""
        student = self.component("student", self.data.get("student"), STUDENTS, STUDENT)
        given = self.data.get("generations")
        generations = None
        if given is not None:
            written = {"count": given} if isinstance(given, int) and not isinstance(given, bool) else given
            if isinstance(written, dict):
                generations = self.validate(Generations, written, "generations")
            else:
                self.add("generations", f"wanted a number, or a mapping such as {{count: 3}}; found {describe(given)}.")
        chain = self.chain()
        if self.data.get("chain") is None:
            return {"student": student, "generations": generations}
        if self.data.get("student") is not None:
            self.add("chain", TWO_STUDENTS)
        if given is not None:
            self.add("generations", TWO_CHAINS)
        return {"chain": chain}

    def chain(self) -> tuple[Link, ...]:
        """Return the students of a chain, each with its own objectives and training arguments."""
        value = self.data.get("chain")
        if value is None:
            return ()
        if not isinstance(value, list) or not value:
            found = "an empty list" if value == [] else describe(value)
            such = "[{name: copy_layers, layers: 4}, {name: copy_layers, layers: 2}]"
            self.add("chain", f"wanted a list of students, such as {such}; found {found}.")
            return ()
        made = []
        for index, one in enumerate(value):
            path = join("chain", index)
            given = one if isinstance(one, dict) else {}
            wrong = self.misspelled(given)
            for key in wrong:
                self.add(join(path, key), unknown_key(key, LINK_KEYS))
            entry = {key: item for key, item in one.items() if key not in (*LINK_KEYS, *wrong)} if given else one
            student = self.component(path, entry, STUDENTS, STUDENT)
            objectives = self.objectives(path, given)
            training = self.training(join(path, "training"), given.get("training", {}), OF_CHAIN)
            if student is not None:
                made.append(Link(student=student, objectives=objectives, training=training))
        return tuple(made)

    @staticmethod
    def misspelled(link: Mapping[str, Any]) -> list[str]:
        """Return the keys of a link that its student does not have, and that look like one beside the student."""
        cls = STUDENTS.get(str(link.get("name")))
        known = {"name", *LINK_KEYS, *getattr(cls, "__pydantic_fields__", {})}
        wrong = [] if cls is None else [key for key in map(str, link) if key not in known]
        return [key for key in wrong if get_close_matches(key, sorted(known), n=1)[:1] in ([one] for one in LINK_KEYS)]

    def stages(self) -> tuple[Stage, ...]:
        """Return the stages, each with its own objectives and training arguments."""
        value = self.data.get("stages")
        if value is None:
            return ()
        if not isinstance(value, list) or not value:
            found = "an empty list" if value == [] else f"found {describe(value)}"
            self.add("stages", f"wanted a list, each entry after '- ', such as {{objectives: [...]}}; {found}.")
            return ()
        for key in ("objectives", "preset"):
            if self.data.get(key) is not None:
                self.add(key, "given together with stages. Each stage has its own: remove this, or the stages.")
        made = []
        for index, given in enumerate(value):
            path = join("stages", index)
            if not isinstance(given, dict):
                self.add(path, f"wanted a mapping {{objectives: [...], training: {{...}}}}, found {describe(given)}.")
                continue
            for key in given:
                if key not in STAGE_KEYS:
                    self.add(join(path, key), unknown_key(key, STAGE_KEYS))
            if given.get("objectives") is None and given.get("preset") is None:
                self.add(join(path, "objectives"), f"missing. Wanted: {REQUIRED['objectives']}.")
            training = self.training(join(path, "training"), given.get("training", {}), SHARED)
            completions = self.completions_of(path, given)
            made.append(Stage(objectives=self.objectives(path, given), training=training, completions=completions))
        return tuple(made)

    def completions_of(self, path: str, given: Mapping[str, Any]) -> Completions | None:
        """Return who writes in a stage: the recipe's section with the keys that the stage has; None if it has none."""
        own, shared = given.get("completions"), self.data.get("completions") or {}
        place = join(path, "completions")
        if own is None:
            return None
        if not isinstance(own, dict) or not isinstance(shared, dict):
            self.add(place, f"wanted a mapping such as {{by: data}}, found {describe(own)}.")
            return None
        plain = {key: value for key, value in {**shared, **own}.items() if key != "backend"}
        made = self.validate(Completions, plain, place)
        if "backend" in own:
            self.add(join(place, "backend"), "one backend writes in all stages: set it in completions of the recipe.")
        by = shared.get("by", "data")
        if made is not None and made.by not in ("data", by) and (by == "data" or not made.in_training):
            self.add(
                join(place, "by"),
                "the data is prepared for all stages at once, by completions of the recipe. Wanted there by: "
                f"{made.by}, and by: data in the stages that learn from the data.",
            )
        return made

    def training(self, path: str, values: Any, elsewhere: Mapping[str, str]) -> dict[str, Any]:
        """Check training arguments: the recipe's, those of a stage, or those that a teacher is first trained with.

        Args:
            path: Key path of the mapping.
            values: The mapping.
            elsewhere: Arguments that cannot be set here -> sentence that says where to set them.
        """
        if not isinstance(values, dict):
            if values is not None or path != "training":  # else `training.output_dir` is reported as missing
                self.add(path, f"wanted a mapping (key: value), found {describe(values)}.")
            return {}
        # A missing output_dir is reported elsewhere.
        missing = {"output_dir"} if values.get("output_dir") is None else set()
        checked = {key: item for key, item in values.items() if key not in (*elsewhere, *missing)}
        for key, message in training_mistakes(checked):
            self.add(join(path, key), message)
        for key in values:
            if key in elsewhere:
                self.add(join(path, key), f"not set here. {elsewhere[key]}")
        return values

    def data_keys(self, task: Task | None) -> None:
        """Check the keys of mappings in `data` that depend on the task."""
        data = self.data.get("data")
        roles = tuple({**task.roles, **EXAMPLE_ROLES}) if task else ()
        known = {"splits": ("train", "eval"), "columns": roles, "transfer.columns": roles}
        for key, choices in known.items():
            given = data
            for part in key.split("."):
                given = given.get(part) if isinstance(given, dict) else None
            for word in given if isinstance(given, dict) and choices else ():
                if word not in choices:
                    hint = f" {glued}" if (glued := glued_key(word)) else did_you_mean(word, choices)
                    self.add(f"data.{key}.{word}", f"unknown key.{hint}")


def _at(data: Any, path: str) -> Any:
    """Return the value at a key path."""
    for part in re.findall(r"[^.\[\]]+", path):
        data = data[int(part) if isinstance(data, list) else part]
    return data


def _listed(data: Mapping[str, Any], key: str) -> list[tuple[str, dict[str, Any]]]:
    """Return key path and content of each entry of a list, such as `stages`, that is a mapping."""
    found = data.get(key)
    listed = found if isinstance(found, list) else []
    return [(join(key, index), item) for index, item in enumerate(listed) if isinstance(item, dict)]


def _spelled(preset: str) -> str:
    """Return the objectives of a preset as YAML for a recipe."""
    return json.dumps(objective_entries(PRESETS[preset]))
