"""The words of `hf-distill sweep`: reads them, and ends with an exit status."""

from __future__ import annotations

import argparse
import gc
import signal
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from hf_distill import parallel
from hf_distill.formatting import readable, readable_lines
from hf_distill.outside import OnlyRead, only_reading
from hf_distill.run.ended import Lost
from hf_distill.run.sweep.drawing import SAMPLERS
from hf_distill.run.sweep.planning import Plan, SweepOptions, plan
from hf_distill.run.watch import watching
from hf_distill.signals import status

DESCRIPTION = "Run a recipe once for each combination of some of its values, and say which is best."
EPILOG = """key=[..] gives values to try, key=value replaces a value in all runs. Examples:
  hf-distill sweep recipe.yaml objectives.0.temperature=[1,2,4] training.learning_rate=[1e-4,2e-4] --seeds 3
  hf-distill sweep recipe.yaml 'objectives=[[{name: kl}],[{name: kl},{name: hidden}]]' 'student.layers=[[0,5],[0,2,5]]'
  hf-distill sweep recipe.yaml 'training.learning_rate=log(1e-5,1e-3)' 'objectives.0.weight=uniform(0.1,1)' --trials 20

Ranges for --trials: log(a,b), uniform(a,b), int(a,b). The same command again goes on where it was interrupted; with
more values or trials it runs the new ones. Every setting has a directory of its own below that of the sweep; sweep.html
there has the table and the plot."""


def main(words: Sequence[str]) -> int:
    """Run a sweep, or check it, and return the exit status.

    Args:
        words: Arguments behind `hf-distill sweep`.

    Returns:
        0 done; 1 if settings have failed; 130 after Ctrl-C and as of a run after other signals.

    Raises:
        UserError: There are mistakes, in words, options, recipe or data; nothing has been loaded.
        SystemExit: From argparse, for `--help` and wrong arguments.
    """
    arguments = _arguments(words)
    options = SweepOptions(
        arguments.trials,
        arguments.sampler or "",
        arguments.seeds,
        arguments.metric or "",
        arguments.into or "",
        arguments.restart,
    )
    # A recipe may be a stranger's: looking at it must not run its code.
    with only_reading() if arguments.check else nullcontext():
        try:
            planned = plan(arguments.recipe, arguments.words, options)
            return _check(planned) if arguments.check else _run(planned)
        except OnlyRead as found:
            if parallel.is_first_of_machine():
                print(readable_lines("\n".join(found.lines)))
            return 0


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="hf-distill sweep",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("recipe", metavar="RECIPE.yaml", help="the recipe that all runs share")
    parser.add_argument("words", metavar="key=[..]", nargs="*", default=[], help="values to try, or key=value")
    parser.add_argument("--check", action="store_true", help="check every setting, and print what would be run")
    parser.add_argument("--trials", metavar="N", type=int, help="draw so many settings at random; default: the grid")
    parser.add_argument("--sampler", choices=SAMPLERS, help="how Optuna draws them; default: random")
    parser.add_argument("--seeds", metavar="N", type=int, help="train each setting with so many seeds (report.seeds)")
    parser.add_argument("--metric", metavar="NAME", help="sort by it; default: the task's first metric")
    parser.add_argument(
        "--into", metavar="DIR", help="directory of the runs; default: output_dir with -sweep behind it"
    )
    parser.add_argument("--restart", action="store_true", help="run every setting anew")
    # "Intermixed" accepts options between the words.
    arguments, unknown = parser.parse_known_intermixed_args(words)
    if unknown:
        hint = "A recipe's values are set without dashes, as in training.learning_rate=[1e-4,2e-4]."
        parser.error(f"unknown option {readable(unknown[0], limit=200)}. {hint}")
    return arguments


def _check(planned: Plan) -> int:
    from hf_distill.run.sweep.command import check

    lines = check(planned)
    if parallel.is_first_of_machine():
        print(readable_lines("\n".join(lines)))
    return 0


def _run(planned: Plan) -> int:
    from hf_distill.report.sweep.terminal import show
    from hf_distill.run.launch import end_with_launcher
    from hf_distill.run.sweep.command import saved, sweep

    end_with_launcher()
    gc.enable()
    try:
        with watching(partial(saved, planned.directory)):
            found = sweep(planned)
    except KeyboardInterrupt as error:
        if parallel.is_first_of_machine():
            print(readable_lines(f"\nInterrupted.{saved(planned.directory)}"), file=sys.stderr)
        return status(int(getattr(error, "signal", signal.SIGINT)))
    except Lost as error:
        error.say()
        return error.status
    if parallel.is_first_of_machine():
        show(found, Path(planned.directory))
    return 1 if found.failed else 0
