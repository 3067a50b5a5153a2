"""The command `hf-distill RECIPE.yaml [section.key=value ...]`: runs a recipe, prints errors, sets the exit status."""

from __future__ import annotations

import argparse
import errno
import gc
import logging
import os
import re
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from hf_distill import parallel
from hf_distill._version import __version__
from hf_distill.errors import UserError
from hf_distill.formatting import ReadableFormatter, readable, readable_lines
from hf_distill.outside import OnlyRead, only_reading
from hf_distill.run import watch
from hf_distill.run.ended import Lost
from hf_distill.run.launch import spin_little
from hf_distill.run.log_file import logging_output
from hf_distill.run.streams import reader_may_go
from hf_distill.run.watch import watching
from hf_distill.signals import BEFORE_LIMIT, status, stopping

if TYPE_CHECKING:
    from hf_distill.recipe.recipe import Recipe

# Exit statuses: 0 done, 2 for a mistake in the recipe, its data or the launch, 1 for anything else. For a run that a
# signal ended see `signals.status`.
FAULT = 2
FAILED = 1
_WORDS = {signal.SIGINT: "Interrupted.", BEFORE_LIMIT: "Stopped before the time limit."}
# First word of the command that runs only the teacher and stores its targets.
CACHE = "cache"
# First word of the command that lets a model write a data set.
GENERATE = "generate"
# First word of the command that loads what a run would load, and says what is wrong with it.
DOCTOR = "doctor"
COMMANDS = (CACHE, GENERATE, DOCTOR)
# First words of commands that read the other words themselves: the module below `run` whose `main(words)` does what
# they say and returns the exit status. It may raise `UserError`, as all others.
OWN_WORDS = {"env": "env.command", "compare": "compare_command", "sweep": "sweep.main", "export": "exporting.command"}

_NO_SPACE = ("No space left on device", "Disk quota exceeded")
_TORCH_SAVE = ("PytorchStreamWriter failed", "unexpected pos ")

EPILOG = """examples:
  hf-distill recipe.yaml --check
  hf-distill doctor recipe.yaml
  hf-distill recipe.yaml training.learning_rate=1e-4 objectives.0.weight=0.7 report.baseline=true
  accelerate launch scripts/distill.py recipe.yaml
  hf-distill cache recipe.yaml
  hf-distill cache recipe.yaml --targets-only
  hf-distill generate recipe.yaml --by student --into rollouts
  hf-distill export outputs/quickstart --format onnx --format onnx-int8
  hf-distill compare outputs/one outputs/two --into compare.html
  hf-distill sweep recipe.yaml objectives.0.temperature=[1,2,4] training.learning_rate=[1e-4,2e-4]
  hf-distill env

The same command again resumes a run that was interrupted."""


# Where they are installed, Transformers imports them, and they warn of GPU kernels that are not there: ten lines before
# the first one of a run that uses none of them.
CHATTY = ("torchao", "bitsandbytes", "torch.utils._pytree")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a recipe, or check it, and return the exit status.

    Args:
        argv: Arguments without the program's name; those of the process if None.

    Returns:
        0 done; 2 for a mistake in the recipe, its data or the launch; 1 if the disk is full, or if the doctor finds a
        mistake; 130 after Ctrl-C, 143 after SIGTERM, 85 after SIGUSR1. If another process of the run has ended, its
        status.

    Raises:
        SystemExit: From argparse: 0 after `--help` and `--version`, 2 for a wrong argument.
        Exception: Any other failure, with its traceback; Python then exits with 1.
    """
    spin_little()
    with reader_may_go(), logging_output(enabled=parallel.is_first_of_all()), _collecting_later(), stopping():
        try:
            return _main([*(sys.argv[1:] if argv is None else argv)])
        finally:
            watch.close()


@contextmanager
def _collecting_later() -> Iterator[None]:
    """Context manager: start without a search for cyclic garbage.

    Importing PyTorch and Transformers makes millions of objects and hardly any garbage: the search would take a fifth
    of the time until the first step. What takes minutes turns it on again, once all is imported.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _main(words: Sequence[str]) -> int:
    if logging.lastResort is not None:  # the handler that prints warnings if nobody has set up logging
        logging.lastResort.setFormatter(ReadableFormatter())
    for library in CHATTY:
        logging.getLogger(library).setLevel(logging.ERROR)
    sys.excepthook = _print_traceback
    if words and words[0] in OWN_WORDS:
        return _follow_own(words[0], words[1:])
    command = words[0] if words and words[0] in COMMANDS else ""
    arguments = _arguments(words[1:] if command else words, command)
    if command == DOCTOR:  # its profiler would warn of memory from before; PyTorch reads this when it is imported
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    # A recipe may be a stranger's: looking at it must not run its code.
    with only_reading() if arguments.check else nullcontext():
        return _follow(arguments, command)


def _follow(arguments: argparse.Namespace, command: str) -> int:
    """Do what the command line says, and return the exit status."""
    recipe: Recipe | None = None
    try:
        recipe = _read(arguments)
        with watching(partial(_resume, recipe, command)):
            return _command(recipe, arguments, command)
    except OnlyRead as found:
        if parallel.is_first_of_machine():
            print(readable_lines("\n".join(found.lines)))
        return 0
    except UserError as error:
        _say("\n".join([*error.mistakes, *_needs(error, arguments.recipe)]))
        return FAULT
    except KeyboardInterrupt as error:
        number = _signal(error)
        if parallel.is_first_of_machine():
            resumes = recipe and not arguments.check and command != DOCTOR
            resume = _resume(recipe, command) if recipe and resumes else ""
            _say(f"\n{_WORDS.get(number, 'Terminated.')}{resume}")
        return status(number)
    except Lost as error:
        error.say()
        return error.status
    except Exception as error:
        if not (full := _full_disk(error)):
            raise
        _say(f"{full}. Free some space; the same command again resumes from the last checkpoint.")
        return FAILED


def _follow_own(command: str, words: Sequence[str]) -> int:
    """Do what the words behind a command of `OWN_WORDS` say, and return the exit status."""
    try:
        return int(import_module(f"hf_distill.run.{OWN_WORDS[command]}").main(words))
    except UserError as error:
        _say("\n".join(error.mistakes))
        return FAULT
    except KeyboardInterrupt as error:
        number = _signal(error)
        _say(f"\n{_WORDS.get(number, 'Terminated.')}")
        return status(number)
    except Exception as error:
        if not (full := _full_disk(error)):
            raise
        _say(f"{full}. Free some space, and give the same command again.")
        return FAILED


def _signal(error: KeyboardInterrupt) -> int:
    return int(getattr(error, "signal", signal.SIGINT))


def _command(recipe: Recipe, arguments: argparse.Namespace, command: str) -> int:
    if command == DOCTOR:
        return 0 if _doctor(recipe, as_document=arguments.json) else FAILED
    if command == GENERATE:
        _generate(recipe, arguments)
    elif arguments.check:
        _check(recipe, publishes=arguments.targets_only)
    elif arguments.targets_only:
        _publish(recipe, with_size=not arguments.without_size)
    elif command == CACHE:
        _cache(recipe)
    else:
        _run(recipe, arguments.restart)
    return 0


def _print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print a traceback as Python does, without control characters and secrets."""
    print(readable_lines("".join(traceback.format_exception(kind, error, trace))), file=sys.stderr, end="")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(
        prog="hf-distill",
        description="Distil a Hugging Face model into a smaller one, as a recipe says.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument("recipe", metavar="RECIPE.yaml", help="what to distil, and how")
    # Without a default, argparse lists them as required.
    made.add_argument(
        "overrides", metavar="section.key=value", nargs="*", default=[], help="replaces a value of the recipe"
    )
    made.add_argument("--check", action="store_true", help="check the recipe and print what would happen; no training")
    made.add_argument("--restart", action="store_true", help="delete the run in the output directory and start over")
    made.add_argument(
        "--targets-only",
        action="store_true",
        help="with the command cache: publish the targets of rows without a label, and nothing else of the data",
    )
    made.add_argument(
        "--without-size", action="store_true", help="with --targets-only: do not tell the number of labelled rows"
    )
    made.add_argument(
        "--by", choices=("student", "teacher"), help="with the command generate: who writes; default: completions.by"
    )
    made.add_argument("--into", metavar="DIR", help="with the command generate: directory of the data set")
    made.add_argument("--json", action="store_true", help="with the command doctor: print a JSON document")
    made.add_argument("--version", action="version", version=f"hf_distill {__version__}")
    return made


def _arguments(argv: Sequence[str] | None, command: str = "") -> argparse.Namespace:
    reader = parser()
    # "Intermixed" accepts `RECIPE --check key=value` as well as `RECIPE key=value --check`.
    arguments, unknown = reader.parse_known_intermixed_args(argv)
    if unknown:
        hint = "A recipe's values are set without dashes, as in training.learning_rate=1e-4."
        reader.error(f"unknown option {readable(unknown[0], limit=200)}. {hint}")
    if arguments.targets_only and command != CACHE:
        reader.error("--targets-only belongs to the command cache: hf-distill cache RECIPE.yaml --targets-only")
    if command != GENERATE and (arguments.by or arguments.into):
        reader.error("--by and --into belong to the command generate: hf-distill generate RECIPE.yaml --by student")
    if arguments.json and command != DOCTOR:
        reader.error("--json belongs to the command doctor: hf-distill doctor RECIPE.yaml --json")
    if command == DOCTOR and (arguments.restart or arguments.check):
        reader.error("doctor checks a recipe and trains nothing, so there is nothing to --check or --restart")
    if command == GENERATE and arguments.restart:
        reader.error("generate writes nothing into the output directory, so there is nothing to --restart")
    if arguments.without_size and not arguments.targets_only:
        reader.error("--without-size belongs to --targets-only, which tells the number of labelled rows")
    return arguments


# Heavy modules are imported as late as possible, so that a mistake in the recipe is reported at once.


def _read(arguments: argparse.Namespace) -> Recipe:
    from hf_distill.recipe.paths import check_paths
    from hf_distill.recipe.reader import load_recipe

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    check_paths(recipe)
    return recipe


def _check(recipe: Recipe, *, publishes: bool = False) -> None:
    from hf_distill.run.dry_run import check
    from hf_distill.run.publishing import check_publishing

    if publishes:
        check_publishing(recipe)
    text = check(recipe)
    if parallel.is_first_of_machine():
        print(readable_lines(text))


def _run(recipe: Recipe, restart: bool) -> None:
    from hf_distill.run.distill import distill
    from hf_distill.run.launch import end_with_launcher

    end_with_launcher()
    gc.enable()
    distill(recipe, restart=restart)


def _cache(recipe: Recipe) -> None:
    """Run the teacher of a recipe on all examples, and store its targets."""
    from hf_distill.run.cache_command import capture
    from hf_distill.run.launch import end_with_launcher

    end_with_launcher()
    gc.enable()
    cache = capture(recipe)
    if parallel.is_first_of_machine():
        done = "all targets were stored before, the teacher was not run" if cache.found else cache.in_words()
        print(readable_lines(f"{cache.path}: {done}"))


def _generate(recipe: Recipe, arguments: argparse.Namespace) -> None:
    """Let student or teacher write a data set; with `--check`, say what it would do."""
    from hf_distill.run.dry_run import check
    from hf_distill.run.generate_command import generate, place, plan
    from hf_distill.run.launch import end_with_launcher

    if arguments.check:
        planned, by = plan(recipe, arguments.by)
        text = f"{check(planned, claims=False)}\ngenerate    the {by} writes, into {place(recipe, by, arguments.into)}"
    else:
        end_with_launcher()
        gc.enable()
        found = generate(recipe, arguments.by, arguments.into)
        text = f"{found.path}: {found.text}"
    if parallel.is_first_of_machine():
        print(readable_lines(text))


def _doctor(recipe: Recipe, *, as_document: bool) -> bool:
    """Load what a run would load, print what is wrong with it, and return whether there is no mistake."""
    from hf_distill.run.doctor.command import doctor
    from hf_distill.run.launch import end_with_launcher

    end_with_launcher()
    gc.enable()
    return doctor(recipe, as_document=as_document)


def _publish(recipe: Recipe, *, with_size: bool) -> None:
    """Train or load the teacher of a recipe, and publish its targets for the rows without a label."""
    from hf_distill.run.launch import end_with_launcher
    from hf_distill.run.publishing import publish

    end_with_launcher()
    gc.enable()
    found = publish(recipe, with_size=with_size)
    if parallel.is_first_of_machine():
        print(readable_lines(f"{found.path}: {found.in_words()}"))


def _resume(recipe: Recipe, command: str) -> str:
    """Return the sentences about what an interrupted run has saved, and how to resume it.

    Args:
        recipe: The recipe.
        command: First word of the command; empty for a run.
    """
    job = os.environ.get("SLURM_JOB_ID")
    slurm = f" Under SLURM: scontrol requeue {readable(job)}" if job else ""
    return f"{_saved(recipe, command)}{slurm}"


def _saved(recipe: Recipe, command: str) -> str:
    if command:
        what = "targets" if command == CACHE else "completions"
        return f" The {what} so far are stored. Run the same command again to continue."
    from hf_distill.run.directory import last_checkpoint, records

    output = Path(recipe.training["output_dir"]).expanduser()
    places = [Path(one).expanduser() if one else None for one in recipe.teacher.output_directories]
    runs = [*sorted((output / "_chain").glob("*/")), output]  # of a chain, one for each student
    checkpoint = next(filter(None, (last_checkpoint(run, places) for run in runs)), None)
    trained = [record["finished"] for run in runs for _, record in records(run, places)]
    if checkpoint is None and trained and all(trained):
        return (
            f" All trainings in {output} are finished. Run the same command again: it repeats none of them, and makes "
            "the report."
        )
    if checkpoint is None:
        return f" No checkpoint yet in {output}. Run the same command again: it repeats only the unfinished training."
    return f" Checkpoint: {checkpoint}. Run the same command again to resume from it."


def _say(text: str) -> None:
    """Print to stderr in the first process only: all processes of a launch raise the same error."""
    if parallel.is_first_of_machine():
        print(readable_lines(text), file=sys.stderr)


def _needs(error: UserError, recipe: str) -> Iterator[str]:
    """Yield the requirements in a recipe's header (`# Needs ...`), if the error is about something missing."""
    missing = ("no such file or directory", "no file matches", "no Python package")
    if not any(word in line for line in error.mistakes for word in missing):
        return
    try:
        header = re.match(r"(?:#.*\n|\s*\n)*", Path(recipe).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):  # the recipe itself is missing
        return
    found = re.search(r"^# Needs\s+(.*(?:\n# {3,}\S.*)*)", header[0] if header else "", re.MULTILINE)
    if found:
        yield f"{recipe} needs {' '.join(found[1].replace(chr(10) + '#', ' ').split())}"


def _full_disk(error: BaseException) -> str:
    """Return which disk is full or which limit was reached, if that caused the error; else ""."""
    for cause in _chain(error):
        number = cause.errno if isinstance(cause, OSError) else None
        text = str(cause)
        name = cause.filename if isinstance(cause, OSError) else None
        # safetensors and arrow put the system's message into their own errors; torch.save does not.
        if number == errno.EFBIG or "File too large" in text:
            return f"A file grew beyond the size limit of this shell{f' ({name})' if name else ''}: see `ulimit -f`"
        full = number in (errno.ENOSPC, errno.EDQUOT) or any(words in text for words in _NO_SPACE)
        if full or (isinstance(cause, RuntimeError) and any(words in text for words in _TORCH_SAVE)):
            return f"The disk is full ({name or 'of the output directory or of a cache'})"
    return ""


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and the errors that caused it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


if __name__ == "__main__":
    sys.exit(main())
