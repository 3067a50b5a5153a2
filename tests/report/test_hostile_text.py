"""Text of others, in everything that a run writes and prints: it is shown, and does nothing."""

from __future__ import annotations

import csv
import json
import logging
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from reports import whole

from hf_distill import load_recipe
from hf_distill.cli import main
from hf_distill.errors import UserError
from hf_distill.formatting import LIMIT, ReadableFormatter, masked, readable
from hf_distill.recipe.writer import dump_recipe
from hf_distill.report.ancestors import Ancestor
from hf_distill.report.model_card import card
from hf_distill.report.own_samples import OwnSamples, ShownTexts
from hf_distill.report.page import html
from hf_distill.run.dry_run import check

WriteRecipe = Callable[..., Path]

LABELS = (
    "<img src=x onerror=alert(1)>",
    "a|b</td></script>",
    "\x1b[31mred\x1b[0m[red]x[/red]",
    "\u202eevil\u2066 & co",
    "x\n---\ntags: [mine]\n---\n# y",
    "``` ` ``` [link](javascript:alert(1)) ![i](http://x/y.png)",
    "$\\frac{1}{$ *b* _i_ {{ 7*7 }}",
)
TOKEN = "hf_" + "Ab1" * 10
SECRETS = {
    "url": ("https://me:pa55word@host/x", "pa55word"),
    "hub": (f"run {TOKEN}", TOKEN[3:]),
    "openai": ("sk-proj-Ab1" + "Cd2" * 10, "Cd2Cd2"),
    "github": ("ghp_" + "Ab1" * 12, "Ab1Ab1"),
    "header": ("Authorization: Bearer abc123def456ghi789", "abc123"),
    "query": ("https://host/x.csv?sig=abcdef12345&a=1", "abcdef"),
}
FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


class Page(HTMLParser):
    """What a browser would make of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.handlers: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        # The label of a plot is text: it is read to somebody, and leads nowhere.
        acting = [(name, value) for name, value in attrs if name != "aria-label"]
        self.handlers += [name for name, value in acting if name.startswith("on") or "javascript:" in str(value)]


def check_card(text: str) -> None:
    """Refuse a card in which any of it acts, in the eyes of a markdown parser with GitHub's tables."""
    from markdown_it import MarkdownIt

    head, body = text.removeprefix("---\n").split("\n---\n", 1)
    assert yaml.safe_load(head)["tags"] == ["distillation", "hf_distill"]
    for token in _flat(MarkdownIt("commonmark", {"html": True}).enable("table").parse(body)):
        if token.type.startswith("html"):
            assert token.content.strip() in ("<details><summary>The recipe</summary>", "</details>"), token.content
        assert token.type != "image"
        if token.type == "link_open":
            assert str(token.attrs["href"]).startswith("https://huggingface.co/")
    for table in re.findall(r"(?:^\|.*\n)+", body, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}) == 1
    headings = [line for line in body.splitlines() if line.startswith("# ")]
    assert len(headings) == 1


def _flat(tokens: Any) -> Any:
    for token in tokens:
        yield token
        yield from _flat(token.children or ())


def check_page(text: str) -> None:
    page = Page()
    page.feed(text)
    assert not page.handlers
    assert not page.tags & {"img", "script", "iframe", "object", "b", "a"} - {"b"}
    assert "49" not in re.sub(r"<svg.*?</svg>", "", text, flags=re.DOTALL) or "{{ 7*7 }}" in text


@pytest.fixture
def hostile(write_recipe: WriteRecipe, make_model: Any, tmp_path: Path) -> Path:
    """A recipe with such names everywhere."""
    folder = tmp_path / "<img src=x onerror=alert(2)> dir|`x`"
    folder.mkdir()
    model = shutil.copytree(make_model("bert", labels=LABELS), folder / "teacher\u202e\x1b[2J")
    data = folder / "data <i>.csv"
    with data.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["text\x1b[5m", "label<script>"])
        writer.writerows([f"a film {index} <b>\x1b]0;title\x07", LABELS[index % len(LABELS)]] for index in range(35))
    return write_recipe(
        data={
            "path": {"train": str(data), "validation": str(data)},
            "columns": {"text": "text\x1b[5m", "label": "label<script>"},
        },
        teacher={"name": "pretrained", "model": str(model)},
        training={
            "output_dir": str(folder / 'out "]<svg onload=x>'),
            "max_steps": 2,
            "run_name": f"{SECRETS['url'][0]} {TOKEN} \x1b[1m",
        },
        report={"latency": False, "baseline": True},
    )


def test_a_whole_run(hostile: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    """A label of a stranger's data set could run code in the page, and rewrite what a terminal shows."""
    statuses = [main([str(hostile), "--check"]), main([str(hostile)])]
    printed = capsys.readouterr()
    assert statuses == [0, 0], printed.err
    logged = "\n".join(map(ReadableFormatter().format, caplog.records))
    output = Path(json.loads(hostile.read_text())["training"]["output_dir"])
    files = {name: (output / name).read_text(encoding="utf-8") for name in ("README.md", "report.html")}
    for name, text in {"stdout": printed.out, "stderr": printed.err, "logs": logged, **files}.items():
        assert not FORBIDDEN.search(text), (name, FORBIDDEN.search(text))
    check_card(files["README.md"])
    check_page(files["report.html"])
    for path in (*output.glob("*.json"), *output.glob("*.yaml"), *output.glob("*.md"), *output.glob("*.html")):
        text = path.read_text(encoding="utf-8")
        assert "pa55word" not in text, path
        assert TOKEN not in text, path
    assert "pa55word" not in printed.out + printed.err + logged
    # They are there, nevertheless.
    assert "&lt;img src=x onerror=alert(1)&gt;" in files["report.html"]


@pytest.mark.parametrize("name", LABELS)
def test_names_in_a_report(name: str) -> None:
    """Whatever has a name in the report, and whichever it is."""
    from dataclasses import replace

    report = whole()
    groups = tuple(replace(group, name=name) for group in report.groups)
    student = replace(report.student, metrics={**report.student.metrics, name: 0.5})
    recipe = json.dumps(
        {
            "data": {"path": f"data/{name}", "name": name, "splits": {"eval": name}},
            "teacher": {"name": name, "model": name},
            "student": {"name": name, "layers": name},
            "objectives": [{"name": name, "weight": 0.5, "layers": name}],
            "training": {"output_dir": f"out/{name}"},
        }
    )
    ancestor = Ancestor(name=name, on_hub=True, made=name, metric=name, value=0.5)
    parts = [
        replace(one, by=name, notes=(name,), groups=(replace(one.groups[0], name=name, reason=name),))
        for one in report.for_whom
    ]
    settings = {"tokenizers": {"student": name, "teacher": name}, name: name}
    changed = replace(
        report,
        student=student,
        groups=groups,
        for_whom=tuple(parts),
        lineage=(ancestor,) * 3,
        recipe=recipe,
        settings=settings,
        task=name,
        own_samples=OwnSamples(3, 9, {"student": {"ended": 0.5}, "teacher": {"ended": 1.0}}, left_out=name),
        samples=(ShownTexts(f"{name} {name * 200}", {"teacher": name, "step 0": f"{name}\n{name}"}),),
    )
    check_card(card(changed))
    check_page(html(changed))
    assert not FORBIDDEN.search(card(changed) + html(changed))


@pytest.mark.parametrize("kind", SECRETS)
def test_secrets(kind: str, write_recipe: WriteRecipe, capsys: pytest.CaptureFixture[str]) -> None:
    """A token in a value ended up in recipe.yaml beside the student, and with a push on the Hub."""
    text, secret = SECRETS[kind]
    assert secret not in masked(f"cannot read {text}: no")
    assert secret not in str(UserError(f"cannot read {text}: no"))
    recipe = load_recipe(write_recipe(training={"run_name": text}))
    for shown in (dump_recipe(recipe), check(recipe)):
        assert secret not in shown
    assert main([str(write_recipe(training={"bf16": text, "learning_rate": text}))]) == 2
    assert main(["none.yaml", f"training.run_name={text}"]) == 2
    assert main([str(write_recipe()), f"training.bf16={text}"]) == 2
    assert secret not in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    "text",
    ["the token of a model", "sk-learn is not scikit-learn-model-with-a-long-name", "mask_token <mask>", "hf_hub"],
)
def test_what_is_not_a_secret(text: str) -> None:
    """Masking what is none hides the name of the file that is at fault."""
    assert masked(text) == text


def test_long_values(write_recipe: WriteRecipe, capsys: pytest.CaptureFixture[str]) -> None:
    """A value without an end pushed everything else out of the terminal's memory."""
    long = "x" * 100_000
    for key in ("teacher.model", "training.bf16", "task", "data.path", "student.name", "objectives.0.name", long):
        assert main([str(write_recipe()), f"{key}={long}"]) == 2
        said = capsys.readouterr().err
        assert max(map(len, said.splitlines())) < LIMIT + 100, key
    assert main([str(write_recipe(task=long, training={"optim": long}))]) == 2
    assert max(map(len, capsys.readouterr().err.splitlines())) < LIMIT + 100
    assert readable(long).endswith("x")


def test_logs(caplog: pytest.LogCaptureFixture) -> None:
    """Warnings name files and labels as much as errors do."""
    with caplog.at_level(logging.WARNING):
        logging.getLogger("hf_distill.test").warning("a label\x1b[2J %s", TOKEN)
    assert ReadableFormatter().format(caplog.records[0]) == "a label\\x1b[2J hf_..."


def test_tracebacks(capsys: pytest.CaptureFixture[str]) -> None:
    """A failure of ours quotes what it failed on: a path with a password, a label that clears the screen."""
    import sys

    main(["none.yaml"])
    capsys.readouterr()
    try:
        raise RuntimeError(f"\x1b[2J cannot read {SECRETS['url'][0]}\nsecond line")
    except RuntimeError as error:
        sys.excepthook(RuntimeError, error, error.__traceback__)
    said = capsys.readouterr().err
    assert "\\x1b[2J cannot read https://me:...@host/x\nsecond line\n" in said
    assert "test_hostile_text.py" in said
