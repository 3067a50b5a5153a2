"""The project around the package: what is configured where, and whether the documents tell the truth."""

from __future__ import annotations

import ast
import configparser
import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from runs import WriteRecipe, run

import hf_distill
from hf_distill import load_recipe

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib  # type: ignore[import-not-found, no-redef, unused-ignore]

if TYPE_CHECKING:
    from conftest import MakeModel

ROOT = Path(__file__).parents[2]
RECIPES = sorted(path for path in (ROOT / "recipes").rglob("*.yaml") if path.parent.name != "accelerate")
LAUNCHES = sorted((ROOT / "recipes" / "accelerate").glob("*.yaml"))
SOURCES = sorted((ROOT / "hf_distill").rglob("*.py"))
DOCUMENTS = [
    *ROOT.glob("*.md"),
    *(ROOT / "docs").rglob("*.md"),
    *(ROOT / "recipes").rglob("*.md"),
    *(ROOT / "examples").rglob("*.md"),
]
OLDEST = (3, 10)


def pyproject() -> dict[str, Any]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def code_blocks(language: str) -> Iterator[tuple[str, str]]:
    """Yield (document, text) of each fenced block of a language in the documents."""
    for document in DOCUMENTS:
        for match in re.finditer(rf"^```{language}\n(.*?)^```", document.read_text(encoding="utf-8"), re.M | re.S):
            yield relative(document), match[1]


# --- configuration ----------------------------------------------------------------------------------------------------


def test_setup_cfg_holds_mypy_and_coverage_and_nothing_else() -> None:
    """setuptools ignores metadata in setup.cfg beside [project], or crashes on it: a second version would be lost."""
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    assert {section.split(":")[0].split("-")[0] for section in settings.sections()} == {"mypy", "coverage"}
    assert settings["mypy"]["strict"] == "True"
    assert not {"mypy", "coverage"} & set(pyproject()["tool"])


def pins() -> list[Requirement]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if not line.startswith("#")]


def requirements() -> list[Requirement]:
    project = pyproject()["project"]
    texts = [*project["dependencies"], *(text for extra in project["optional-dependencies"].values() for text in extra)]
    return [Requirement(text) for text in texts if not text.startswith("hf-distill")]


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.13"])
def test_every_dependency_is_pinned_within_its_bound(python: str) -> None:
    """A pin below its bound, or none, would test other versions than the ones a user is promised."""
    environment = {"python_version": python, "python_full_version": f"{python}.0"}  # the rest: this machine's
    valid = [pin for pin in pins() if pin.marker is None or pin.marker.evaluate(environment)]
    versions = {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in valid}
    assert len(versions) == len(valid), "pinned twice"
    for requirement in requirements():
        if requirement.marker is not None and not requirement.marker.evaluate(environment):
            continue
        assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)], prereleases=True)


def test_pins_name_no_place_and_no_build() -> None:
    """`torch==2.13.0+cpu` or an address would install on one kind of machine only."""
    for pin in pins():
        assert pin.url is None
        assert re.fullmatch(r"==[0-9a-z.]+", str(pin.specifier)), pin


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_runs_on_the_oldest_python(path: Path) -> None:
    """`typing` grew after Python 3.10; an import of a newer name fails there, where no developer sees it."""
    newer = {
        "typing": "LiteralString Never NotRequired Required Self TypeVarTuple Unpack assert_never assert_type "
        "dataclass_transform override reveal_type TypeAliasType",
        "enum": "StrEnum EnumType",
        "datetime": "UTC",
        "itertools": "batched",
        "contextlib": "chdir",
        "hashlib": "file_digest",
    }
    tree = ast.parse(path.read_text(encoding="utf-8"), feature_version=OLDEST)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert "tomllib" not in [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            found = {alias.name for alias in node.names} & set(newer.get(node.module or "", "").split())
            assert not found, f"line {node.lineno}: import {', '.join(found)} from typing_extensions or do without"


def test_the_changelog_knows_this_version() -> None:
    """A release without its changes written down cannot be told from the one before."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## \[(Unreleased|{re.escape(hf_distill.__version__)})\]", text, re.M)


def test_no_path_of_a_machine_is_in_the_repository() -> None:
    """A developer's own directory in a recipe or a test works for nobody else."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    # Homes of "me" and "user" are examples, of paths that must not be published.
    own = re.compile(r"(?<![\w.:/])/(?:home|Users|root|mnt|work|workspace)/(?!me/|user/|you/)\w|[A-Z]:\\\\?Users")
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        found = own.search(text)
        assert not found, f"{name}: {found}"


def test_every_test_says_what_it_prevents() -> None:
    """A test nobody can explain is deleted, or bent, when it fails."""
    silent = []
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_") and not ast.get_docstring(node):
                silent.append(f"{relative(path)}: {node.name}")
    assert files
    assert not silent, "without docstring: " + ", ".join(silent)


# --- recipes ----------------------------------------------------------------------------------------------------------


def test_recipes_are_found() -> None:
    """A glob that finds nothing would let every test below pass without looking at a recipe."""
    assert {"quickstart", "bert"} <= {path.stem for path in RECIPES}
    assert {"one_process", "cpu", "multi_cpu", "multi_gpu", "multi_node", "fsdp2"} <= {path.stem for path in LAUNCHES}


@pytest.mark.parametrize("path", RECIPES, ids=relative)
def test_recipe_reads(path: Path) -> None:
    """A renamed key would break a recipe that nobody runs here, such as one that needs the Hub."""
    recipe = load_recipe(path)
    assert all(stage.objectives for stage in recipe.plan)
    text = path.read_text(encoding="utf-8").splitlines()
    schema = re.fullmatch(r"# yaml-language-server: \$schema=(\S+)", text[0])
    assert schema, "the first line names the schema, so that editors complete keys"
    assert (path.parent / schema[1]).is_file()
    header = "\n".join(line for line in text if line.startswith("#"))
    assert f"accelerate launch scripts/distill.py {relative(path)}" in header


@pytest.mark.parametrize("path", LAUNCHES, ids=relative)
def test_launch_configuration_reads(path: Path) -> None:
    """accelerate starts one process, silently, for most combinations of several processes and CPU."""
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    settings = load_config_from_file(str(path))  # which refuses unknown keys
    engines = {"fsdp_config": "FSDP", "deepspeed_config": "DEEPSPEED"}
    several = next((engine for key, engine in engines.items() if getattr(settings, key)), "MULTI_GPU")
    assert settings.distributed_type == (several if settings.num_processes > 1 else "NO")
    assert (settings.num_machines > 1) == (settings.main_process_ip is not None)
    known = {action.dest for action in launch_command_parser()._actions}
    assert {f"fsdp_{key.removeprefix('fsdp_')}" for key in settings.fsdp_config} <= known
    assert settings.deepspeed_config.keys() <= known
    assert f"--config_file {relative(path)}" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", [*RECIPES, *LAUNCHES], ids=relative)
def test_every_recipe_is_listed(path: Path) -> None:
    """A recipe that the table leaves out is found by nobody."""
    assert f"({path.relative_to(ROOT / 'recipes').as_posix()})" in (ROOT / "recipes" / "README.md").read_text("utf-8")


# --- documents --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("document", DOCUMENTS, ids=relative)
def test_links_lead_somewhere(document: Path) -> None:
    """A moved file would leave a reader with a dead link."""
    links = re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", document.read_text(encoding="utf-8"))
    missing = [link for link in links if not (document.parent / link).exists()]
    assert not missing


def test_files_that_are_named_exist() -> None:
    """A docstring or page that sends a reader to a file that was moved costs more than one that says nothing."""
    texts = [*DOCUMENTS, *SOURCES, *(ROOT / "tests").rglob("*.py")]
    named = re.compile(r"`((?:hf_distill|tests|scripts|recipes|benchmarks)/[\w/]+\.(?:py|yaml|md))`")
    gone = [
        f"{relative(path)}: {name}"
        for path in texts
        for name in named.findall(path.read_text(encoding="utf-8"))
        if path.name != "CHANGELOG.md" and not (ROOT / name).exists()
    ]
    assert gone == []


def rooms() -> list[str]:
    """Return the paths in the list of rooms of CONTRIBUTING.md: a block whose indentation is two spaces a level."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    block = text.split("<!-- rooms -->")[1].split("```")[1]
    paths: list[str] = []
    parents: list[str] = []
    for line in block.splitlines()[1:]:
        entry = re.match(r"( *)(\S+)", line)
        if entry and not line.startswith(" " * 12):  # deeper: a description goes on
            depth = len(entry[1]) // 2
            parents = [*parents[:depth], entry[2].rstrip("/")]
            paths.append("/".join(parents))
    return paths


def test_every_room_is_listed() -> None:
    """A newcomer starts from that list: a room that is gone, or one that is not in it, sends them wrong."""
    listed = rooms()
    package = ROOT / "hf_distill"
    there = [path for path in package.rglob("*") if (path / "__init__.py").exists()]
    there += [path for path in package.glob("*.py") if path.name not in ("__init__.py", "__main__.py")]
    assert [path for path in listed if not (ROOT / path).exists()] == []
    assert [relative(path) for path in there if relative(path) not in listed] == []
    tiers = pyproject()["tool"]["importlinter"]["contracts"][0]["layers"]
    height = {name.strip(): number for number, tier in enumerate(tiers) for name in tier.split("|")}
    heights = [height[Path(path).stem] for path in listed if Path(path).parent.name == package.name]
    assert heights == sorted(heights), "imports run down the list"


def test_recipes_in_documents_read(tmp_path: Path) -> None:
    """An example with a renamed key is the first thing a new user would copy."""
    count = 0
    for document, text in code_blocks("yaml"):
        if re.search(r"^task:", text, re.M):
            (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
            assert load_recipe(tmp_path / "recipe.yaml").plan[0].objectives, document
            count += 1
    assert count


def example(name: str) -> str:
    """Return the Python example of docs/extending.md that is to be saved as `name`."""
    return next(text for _, text in code_blocks("python") if text.startswith(f"# {name}\n"))


def test_parts_of_recipes_in_documents_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list of objectives or stages with a renamed key, or a rule for layers that is none, would be copied too."""
    (tmp_path / "my_losses.py").write_text(example("my_losses.py"), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    whole = RECIPES[0].read_text(encoding="utf-8")
    found = set()
    for document, text in code_blocks("yaml"):
        part = re.match(r"(objectives|stages):", text)
        if part:
            rest = re.sub(r"^objectives:\n(?: .*\n)+", "", whole, flags=re.M)
            (tmp_path / "recipe.yaml").write_text(rest + text, encoding="utf-8")
            assert load_recipe(tmp_path / "recipe.yaml").plan[0].objectives, document
            found.add((document, part[1]))
    assert {("docs/features.md", "objectives"), ("docs/recipe.md", "stages")} <= found


def rows_of(document: str, heading: str) -> dict[str, list[str]]:
    """Return the rows of the tables in a section, by each name of the first cell; cells as they stand there."""
    section = (ROOT / document).read_text(encoding="utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    found = {}
    for line in section.splitlines():
        if line.startswith("|"):
            cells = [cell.strip() for cell in line.strip("|").split(" | ")]
            found.update(dict.fromkeys(re.findall(r"`([^`]+)`", cells[0]), cells))
    return found


def test_every_objective_says_what_it_was_checked_against_and_every_preset_what_it_holds() -> None:
    """What docs/loss.md leaves out is a number nobody can tell the meaning of. Its formulas are generated."""
    from hf_distill.objectives import OBJECTIVES, PRESETS

    text = (ROOT / "docs" / "loss.md").read_text(encoding="utf-8")
    checked = text.partition("| tested against |")[2].partition("\n\n")[0]
    assert OBJECTIVES.keys() <= set(re.findall(r"`(\w+)`", checked))
    presets = rows_of("docs/loss.md", "Presets")
    assert presets.keys() == PRESETS.keys()
    for name, cells in presets.items():
        assert {one.name for one in PRESETS[name]} <= set(re.findall(r"`(\w+)`", cells[1])), name


def test_every_task_is_described() -> None:
    """A task that docs/tasks.md leaves out, or whose roles it gets wrong, is found out by an error in a run."""
    from hf_distill.tasks import TASKS

    text = (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8")
    tables = [line.split(" | ") for line in text.splitlines() if line.startswith("| [`")]
    rows = {re.findall(r"`([^`]+)`", cells[0])[0]: cells for cells in tables}
    assert rows.keys() == TASKS.keys()
    for name, task in TASKS.items():
        assert set(re.findall(r"`(\w+)`", rows[name][2])) == set(task.roles), name
        section = next(part for part in text.split("\n## ") if f"`{name}`" in part.splitlines()[0])
        assert len(section.splitlines()) > 2, name
    own = text.split("\n## Two tokenizers\n")[1]
    for name, task in TASKS.items():
        assert (f"`{name}`" in own) == task.own_tokenizers, name


def test_the_readme_leads_to_a_page_that_names_all_there_is_to_choose_from() -> None:
    """What is in no table of a page that the first page links does not exist for a new user."""
    from hf_distill.objectives import OBJECTIVES
    from hf_distill.students import STUDENTS
    from hf_distill.tasks import TASKS
    from hf_distill.teachers import TEACHERS

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    pages: dict[str, Any] = {"tasks": TASKS, "teachers": TEACHERS, "students": STUDENTS, "loss": OBJECTIVES}
    for page, table in pages.items():
        assert f"(docs/{page}.md)" in readme
        lines = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8").splitlines()
        listed = "".join(line for line in lines if line.startswith("|"))
        assert [name for name in table if f"`{name}`" not in listed] == [], page


def test_python_in_documents_compiles_and_imports_what_exists() -> None:
    """An example that imports a name that was renamed fails on its first line."""
    from importlib import import_module

    count = 0
    for document, text in code_blocks("python"):
        for node in ast.walk(ast.parse(text, document)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hf_distill"):
                for alias in node.names:
                    assert hasattr(import_module(node.module or ""), alias.name), f"{document}: {alias.name}"
                    count += 1
    assert count


def test_the_example_of_an_own_objective_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The class that everyone will copy must be taken by the reader, with its own keys."""
    import torch

    (tmp_path / "my_losses.py").write_text(example("my_losses.py"), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    recipe = load_recipe(RECIPES[0], ['objectives.0={name: "my_losses:LogitsL1", weight: 0.5, scale: 2.0}'])
    objective: Any = recipe.objectives[0]
    rows = objective.rows(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 4.0]]), torch.tensor([-100]))
    assert rows.tolist() == [2.0]


def test_the_example_of_a_cache_runs(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An example that stops before the trainer leaves out what goes wrong: which layers, which data, which teacher."""
    text = next(text for document, text in code_blocks("python") if document == "docs/caching.md")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "teacher").symlink_to(make_model("llama-lm", layers=4, seed=1))
    (tmp_path / "student").symlink_to(make_model("llama-lm", layers=2))
    (tmp_path / "train.txt").write_text("a great film\nthe plot is dull\nthe cast is charming\n" * 4)
    (tmp_path / "eval.txt").write_text("a dull film\n")
    for said in ("targets: 4 examples (of 13; ", "targets: Found: 4 examples (of 13; "):
        names: dict[str, Any] = {}
        with caplog.at_level("INFO", logger="hf_distill"):
            exec(compile(text, "docs/caching.md", "exec"), names)
        assert any(one.startswith(said) for one in caplog.messages)
        assert names["trainer"].state.global_step == 6
        assert [one.name for one in names["trainer"].source.kept.states] == ["hidden_2", "hidden_4"]


def test_the_examples_for_a_trainer_script_run(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever brings a script copies these lines: one that fails there is found nowhere else."""
    blocks = [text for document, text in code_blocks("python") if document == "docs/trainer.md"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "teacher").symlink_to(make_model("bert", layers=2, seed=1))
    (tmp_path / "student").symlink_to(make_model("bert", layers=1))
    (tmp_path / "train.csv").write_text("text,label\n" + "a great film,1\nthe plot is dull,0\n" * 8)
    (tmp_path / "eval.csv").write_text("text,label\na moving story,1\nboring,0\n")
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "docs/trainer.md", "exec"), names)
    assert names["report"].baseline is not None
    assert {"report.html", "report.json", "README.md"} <= {one.name for one in (tmp_path / "out/report").iterdir()}
    assert "adapter_model.safetensors" in {one.name for one in (tmp_path / "adapter").iterdir()}
    assert (tmp_path / "targets").is_dir()
    assert len(blocks) == 5


def test_the_example_of_an_own_task_runs(
    write_recipe: WriteRecipe, make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The class that everyone will copy must make data that trains, with its own roles, keys and metrics."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    (tmp_path / "my_tasks.py").write_text(example("my_tasks.py"), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    data = tmp_path / "reviews.jsonl"
    rows = [{"text": f"a {'great' if stars > 2 else 'poor'} film", "stars": stars} for stars in (1, 2, 4, 5)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows * 4), encoding="utf-8")
    path = write_recipe(
        task={"name": "my_tasks:Stars", "most": 10},
        data={"path": {"train": str(data), "validation": str(data)}, "columns": {"review": "text"}},
        teacher={"name": "pretrained", "model": str(make_model("bert", labels=["stars"]))},
        objectives=[{"name": "logits_mse", "weight": 0.0}, {"name": "labels"}],  # the teacher's weights are random
        training={"num_train_epochs": 12, "learning_rate": 3e-3},
    )
    report = run(path)
    assert report.metric == "spearman"
    student = report.models["student"].metrics
    assert student.keys() == {"spearman", "mse"}
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    answers = [model(**tokenizer(row["text"], return_tensors="pt")).logits.item() for row in rows]
    errors = [(answer - row["stars"] / 10) ** 2 for answer, row in zip(answers, rows, strict=True)]
    assert student["mse"] == pytest.approx(sum(errors) / 4, rel=1e-4)
    assert student["mse"] < 0.115, "no better than always 0"


def test_every_recipe_key_is_documented() -> None:
    """A key that docs/recipe.md leaves out exists only for those who read the source."""
    from hf_distill.data.section import Data
    from hf_distill.objectives import OBJECTIVES, PRESETS, Schedule
    from hf_distill.recipe.recipe import Evaluation, Hub, Recipe, ReportOptions, Stage
    from hf_distill.students import STUDENTS
    from hf_distill.tasks import TASKS
    from hf_distill.teachers import TEACHERS

    text = (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8")
    tables: list[dict[str, Any]] = [OBJECTIVES, STUDENTS, TASKS, TEACHERS]
    components = [component for table in tables for component in table.values()]
    keys = {name for table in tables for name in table} | set(PRESETS)
    for part in (Recipe, Stage, Schedule, Data, Evaluation, Hub, ReportOptions, *components):
        keys |= {field.name for field in fields(part) if field.init}
    assert sorted(key for key in keys - {"origin", "places", "unread"} if f"`{key}`" not in text) == []
