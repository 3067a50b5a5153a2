"""Pages of made-up reports, one for each kind of run that somebody looks at in a browser."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from reports import RECIPE, by_group, model, several_seeds, speed, unlabelled, whole

from hf_distill.report.ancestors import Ancestor
from hf_distill.report.own_samples import Difference, OwnSamples, ShownTexts
from hf_distill.report.page import html
from hf_distill.report.recipe_facts import recipe_of
from hf_distill.report.report import Report
from hf_distill.report.runs import page as runs
from hf_distill.report.runs.comparison import RunComparison
from hf_distill.report.runs.reading import ComparedRun
from hf_distill.report.speculation import Rates, Speculation
from hf_distill.report.sweep import page as sweeps
from hf_distill.report.sweep.results import SettingRun, Sweep

SETTINGS = {
    "versions": {"hf_distill": "0.1.0", "transformers": "5.23.0", "torch": "2.13.0", "python": "3.11.7"},
    "device": "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz",
    "processes": 1,
    "precision": "float32 (training and metrics); latency in each model's own dtype",
    "train_rows": 67_349,
    "eval_rows": 10_000,
    "parameters": {
        "teacher": "embeddings 11.9 M (52 %), layers 10.6 M (47 %), head 770, rest 147.8 K (1 %); 90.9 MB as float32",
        "student": "embeddings 11.9 M (69 %), layers 5.3 M (31 %), head 770, rest 147.8 K (1 %); 69.6 MB as float32",
    },
    "seconds": {"teacher": 56.6, "student": 169.2, "student training": 137.7, "baseline": 187.4},
    "training_cost": {"student": {"tokens_per_second": 805.2, "teacher_share": 0.31, "peak_memory": 2117.7}},
}
LONG = "a label that nobody would ever write, and that nevertheless somebody has written, " * 3
EVIL = '<img src=x onerror="alert(1)">\u202eevil\u2066 \x1b[31m {{ 7*7 }} $\\frac{1}{$ ' + "x" * 300


def ordinary(**changes: object) -> Report:
    """Return the report of an ordinary run: two classes, a baseline, its settings."""
    return replace(whole(), settings=SETTINGS, **changes)  # type: ignore[arg-type]


def single() -> Report:
    """Return the report of a run that logged and evaluated once, at its end."""
    logs = {
        name: [
            {"step": 40, "loss": 0.5, "objective/labels": 0.61, **({"objective/kl": 0.4} if name == "student" else {})},
            {"step": 40, "eval_loss": 0.5, "eval_accuracy": value},
        ]
        for name, value in (("student", 0.831), ("baseline", 0.819))
    }
    return ordinary(history=logs)


def five_seeds() -> Report:
    """Return the report of five seeds, each with its curves."""
    report = several_seeds((0.831, 0.84, 0.825, 0.829, 0.836), (0.819, 0.822, 0.815, 0.824, 0.818), settings=SETTINGS)
    logs = {
        f"{name} seed {seed}": log for seed in range(43, 47) for name, log in report.history.items() if " " not in name
    }
    return replace(report, history={**report.history, **logs})


def many_classes() -> Report:
    """Return the report of 150 classes."""
    report = whole(tuple(f"intent_{index}_of_a_customer" for index in range(150)), rows=9000, settings=SETTINGS)
    return replace(report, for_whom=report.for_whom[1:])


def chain() -> Report:
    """Return the report of the last student of a chain."""
    sizes = {"bert-base": 109_482_240, "assistant-8-layers": 81_100_000, "assistant-6": 66_900_000, "tiny": 14_300_000}
    lineage = tuple(
        Ancestor(
            name=name,
            made=f"copy_layers (layers {12 - 3 * place})" if place else "",
            parameters=size,
            bytes=size * 4,
            latency_ms=20.0 / (1 + place),
            metric="accuracy",
            value=0.86 - place / 100,
            rows="x",
        )
        for place, (name, size) in enumerate(sizes.items())
    )
    return ordinary(lineage=lineage)


def groups() -> Report:
    """Return the report of a run with a column of groups, one of which lost."""
    names = ("18 to 30", "31 to 45", "46 to 60", "over 60", "not told")
    rng = np.random.default_rng(1)
    group = rng.integers(0, 5, 4000)
    group[group == 4] *= rng.random((group == 4).sum()) > 0.97
    right = {key: rng.random(4000) < share for key, share in (("teacher", 0.9), ("student", 0.88), ("baseline", 0.86))}
    right["student"] = np.where(group == 3, rng.random(4000) < 0.7, right["student"])
    whom = by_group(names, right, group, notes=("'unknown' has no rows in the train split: the student never saw it.",))
    report = ordinary()
    return replace(report, for_whom=(whom, *report.for_whom[1:]))


def language_model() -> Report:
    """Return the report of a language model, with what teacher, student and baseline write."""
    models = ("teacher", "student", "baseline")
    figures = {
        name: {"completion_length": 48.2, "ended": 0.91, "repeated_4grams": 0.03, "distinct": 0.99} for name in models
    }
    for name in models[1:]:
        figures[name] |= {"reverse_kl": 0.41, "forward_kl": 0.38, "acceptance": 0.71}
    texts = {
        "teacher": "The museum opens at nine. Tickets are sold at the door until half past four; children go in free.",
        "step 0": "the the of the of a the the of of the the the",
        "step 500": "The museum is open at nine and the museum is open at nine and the museum",
        "student": "The museum opens at nine in the morning, and tickets can be bought at the door.",
        "baseline": "The museum is a museum of the city. It is one of the largest museums of the city, and a museum.",
    }
    prompts = ("When does the museum open, and where do I buy a ticket?", "Write a haiku about compilers.\n\nHaiku:")
    sizes = {"teacher": (360_000_000, 40.0), "student": (135_000_000, 18.0), "baseline": (135_000_000, 18.0)}
    perplexity = {"teacher": 11.2, "student": 14.9, "baseline": 16.1}
    measured = {
        name: model(size, speed(ms, ms * 12), perplexity=perplexity[name]) for name, (size, ms) in sizes.items()
    }
    return replace(
        unlabelled(),
        task="text-generation",
        metric="perplexity",
        greater_is_better=False,
        **measured,
        agreement=0.71,
        baseline_agreement=0.66,
        recipe=RECIPE.replace("text-classification", "text-generation"),
        own_samples=OwnSamples(
            200, 64, figures, {name: {"reverse_kl": 0.02} for name in models}, {"reverse_kl": Difference(-0.05, 0.02)}
        ),
        samples=tuple(ShownTexts(prompt, {key: f"{text}" for key, text in texts.items()}) for prompt in prompts),
        speculation=Speculation(32, 64, Rates(24.1, 41.0, 0.98), Rates(23.0, 30.2, None)),
        history=whole().history,
        settings=SETTINGS,
    )


def hostile() -> Report:
    """Return a report whose names are very long, or written by somebody who means harm."""
    report = whole((EVIL, LONG))
    student = replace(report.student, metrics={**report.student.metrics, EVIL: 0.5, "x" * 200: 0.25})
    recipe = RECIPE.replace("outputs/bert-small", "outputs/" + "very-long-name-of-a-run-" * 8)
    return replace(report, student=student, settings={EVIL: EVIL, "label": LONG}, recipe=recipe)


def compared() -> str:
    """Return the page of three runs."""
    warm = RECIPE.replace("temperature: 2.0", "temperature: 4.0").replace("layers: 6", "layers: 4")
    reports = {
        "kl": ordinary(),
        "warm": replace(five_seeds(), recipe=warm),
        "long-name-of-a-run-" * 4: replace(ordinary(), recipe=RECIPE.replace("weight: 0.5, temp", "weight: 0.9, temp")),
    }
    lineage = (Ancestor(name="student", rows="x"),)
    runs_ = [ComparedRun(name, replace(one, lineage=lineage), recipe_of(one.recipe)) for name, one in reports.items()]
    return runs.html(RunComparison(tuple(runs_)))


def swept() -> str:
    """Return the page of a sweep over two keys."""
    keys = ("objectives.0.temperature", "objectives.0.weight")
    trials = tuple(
        SettingRun(f"t{place}", dict(zip(keys, values, strict=True)), "finished", on_accuracy(0.80 + place / 100))
        for place, values in enumerate(((1.0, 0.5), (2.0, 0.5), (4.0, 0.5), (1.0, 0.9), (2.0, 0.9), (4.0, 0.9)))
    )
    failed = SettingRun("t6", dict(zip(keys, (8.0, LONG), strict=True)), "failed", error=EVIL)
    return sweeps.html(Sweep("recipes/bert.yaml", keys, (*trials, failed)))


def on_accuracy(value: float) -> Report:
    """Return an ordinary report with this accuracy of the student."""
    report = ordinary()
    return replace(report, student=replace(report.student, metrics={"accuracy": value}))


PAGES: dict[str, Callable[[], str]] = {
    "two": lambda: html(ordinary()),
    "classes": lambda: html(many_classes()),
    "unlabelled": lambda: html(unlabelled()),
    "seeds": lambda: html(five_seeds()),
    "chain": lambda: html(chain()),
    "groups": lambda: html(groups()),
    "language": lambda: html(language_model()),
    "hostile": lambda: html(hostile()),
    "single": lambda: html(single()),
    "compare": compared,
    "sweep": swept,
}
