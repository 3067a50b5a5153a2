"""Train what is missing of the table of results, and write it: `make results ROW=topics/kl`; without ROW, all rows."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import machine
from benchmarks.quality import sweeps
from benchmarks.quality.studies import ROOT, STUDIES, Study
from benchmarks.quality.table import write_document

RESULTS = ROOT / "benchmarks" / "results" / "quality"
OUTPUTS = ROOT / "outputs" / "results"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the rows that are named and not there yet, write the table of docs/results.md, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__.partition("\n")[0])
    parser.add_argument("rows", nargs="*", help="STUDY, STUDY/ROW or sweep/NAME; all if none is named")
    parser.add_argument("--again", action="store_true", help="also rows that were measured before")
    parser.add_argument("--outputs", type=Path, default=OUTPUTS, help="where the students go")
    parser.add_argument("--table", action="store_true", help="write the table alone, from what was measured")
    options = parser.parse_args(arguments)
    known = {f"{name}/{row}": (name, study, row) for name, study in STUDIES.items() for row in study.names}
    swept = {f"sweep/{name}": name for name in sweeps.SWEEPS}
    wanted = [one for one in known if not options.rows or one in options.rows or one.split("/")[0] in options.rows]
    if strange := [row for row in options.rows if row not in known | swept and row not in STUDIES]:
        parser.error(f"{strange[0]}: no such row. There are {', '.join((*STUDIES, *known, *swept))}")
    for one in () if options.table else wanted:
        name, study, row = known[one]
        if options.again or row not in read(name):
            print(f"{one}: {shlex.join(command(study, row))}", flush=True)
            keep(name, row, run(name, study, row, options.outputs))
    for one in () if options.table else swept:
        if (not options.rows or one in options.rows) and (options.again or not read(_file(swept[one]))):
            print(f"{one}: {shlex.join(sweeps.words(swept[one]))}", flush=True)
            into = options.outputs / "sweeps" / swept[one]
            start([*sweeps.words(swept[one]), "--into", str(into)])
            write(_file(swept[one]), {**sweeps.summary(swept[one], into), "machine": machine()})
    write_document({name: read(name) for name in STUDIES}, {name: read(_file(name)) for name in sweeps.SWEEPS})
    return 0


def _file(sweep: str) -> str:
    return f"sweep_{sweep}"


def command(study: Study, row: str) -> list[str]:
    """Return the words of the command whose report is a row of the table; its output directory is added."""
    return ["hf-distill", study.recipe, *study.overrides(row)]


def run(name: str, study: Study, row: str, outputs: Path) -> dict[str, Any]:
    """Train the students of a row, and return what its report says.

    The directory of the teacher is shared by the rows of a study.

    Raises:
        SystemExit: The run failed; its output was shown.
    """
    into = outputs / name / row
    start([*command(study, row), f"training.output_dir={into}"])
    report = json.loads((into / "report.json").read_text(encoding="utf-8"))
    return {"command": shlex.join(command(study, row)), **summary(report), "machine": machine()}


def start(words: Sequence[str]) -> None:
    """Run `hf-distill` with this Python.

    Raises:
        SystemExit: It failed; its output was shown.
    """
    done = subprocess.run(
        [sys.executable, "-m", "hf_distill", *words[1:]],
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.returncode)


def summary(report: dict[str, Any]) -> dict[str, Any]:
    """Return what the table needs of a report: its metrics for every seed, and what it cost."""
    seconds = report["settings"]["seconds"]
    return {
        "metric": report["metric"],
        "greater_is_better": report["greater_is_better"],
        "eval_rows": report["eval_rows"],
        "teacher": report["teacher"]["metrics"],
        "seeds": [
            {
                "seed": seed["seed"],
                "student": seed["student"],
                "baseline": seed.get("baseline"),
                "best": seed.get("best"),
            }
            for seed in report["seeds"]
        ],
        "parameters": {"teacher": report["teacher"]["parameters"], "student": report["student"]["parameters"]},
        "gain_error": report["gain_error"],
        "seconds": {name: spent for name, spent in seconds.items() if name.endswith(" training")},
    }


def read(study: str) -> dict[str, Any]:
    """Return row -> what was measured of a study; of a sweep, what its table needs."""
    file = RESULTS / f"{study}.json"
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return found


def keep(study: str, row: str, measured: dict[str, Any]) -> None:
    """Store what was measured of a row."""
    rows = {**read(study), row: measured}
    write(study, {name: rows[name] for name in STUDIES[study].names if name in rows})


def write(name: str, content: dict[str, Any]) -> None:
    """Write a file of results."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
