"""Benchmarks of the lm-evaluation-harness (`lm_eval`) on the models of a run."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_distill.errors import UserError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def check_installed(tasks: Sequence[str]) -> None:
    """Refuse tasks if the harness is not installed, or a file of one is not there; nothing is loaded.

    Args:
        tasks: As in a recipe.

    Raises:
        UserError: It is so.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError(
            "the package lm_eval, which runs these tasks, is not installed: pip install 'hf-distill[harness]'.",
            key="lm_eval",
        )
    for file in map(Path, filter(_is_file, tasks)):
        if not file.is_file():
            raise UserError(f"no such file: {file}.", key="lm_eval")


def _is_file(task: str) -> bool:
    return task.endswith((".yaml", ".yml"))


class Harness:
    """The tasks of the harness that a recipe names, with their data.

    Args:
        tasks: Names, or paths of YAML files of tasks.

    Raises:
        UserError: `lm_eval` is not installed, a task is unknown, or its data cannot be loaded.
    """

    def __init__(self, tasks: Sequence[str]) -> None:
        check_installed(tasks)
        from lm_eval.tasks import TaskManager  # type: ignore[import-not-found]

        folders = list(dict.fromkeys(str(Path(task).resolve().parent) for task in filter(_is_file, tasks)))
        self.names = [_name(task) for task in tasks]
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                self._manager = TaskManager(include_path=folders or None)
                self._manager.load(self.names)
        # The harness and data sets raise anything: KeyError for a task, ConnectionError, ValueError for data.
        except Exception as error:
            raise UserError(
                f"the harness cannot load its tasks {', '.join(self.names)}: {type(error).__name__}: "
                f"{first_line(error)}. Their data comes from the Hub; lm_eval --tasks list has their names.",
                key="lm_eval",
            ) from error

    def evaluate(self, model: Any, tokenizer: PreTrainedTokenizerBase, batch_size: int) -> dict[str, float]:
        """Return `task metric` -> value of a model, without the harness's own standard errors.

        Args:
            model: A causal language model.
            tokenizer: Its tokenizer.
            batch_size: Texts of a batch.
        """
        import lm_eval  # type: ignore[import-not-found]
        from lm_eval.models.huggingface import HFLM  # type: ignore[import-not-found]

        with contextlib.redirect_stdout(io.StringIO()):
            found = lm_eval.simple_evaluate(
                model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size),
                tasks=self.names,
                task_manager=self._manager,
                log_samples=False,
                bootstrap_iters=0,
            )
        values = {}
        for task, metrics in found["results"].items():
            for metric, value in metrics.items():
                name, comma, _ = metric.partition(",")  # `acc,none`: metric and filter; others are counts
                if comma and isinstance(value, int | float) and "stderr" not in name and math.isfinite(value):
                    values[f"{task} {name}"] = float(value)
        return values


def _name(task: str) -> str:
    """Return the name of a task; of a YAML file, the one in it."""
    if not _is_file(task):
        return task
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        lines = [line for line in Path(task).read_text("utf-8").splitlines() if line.startswith("task:")]
        return str(YAML(typ="safe", pure=True).load(lines[0])["task"])
    except (OSError, IndexError, KeyError, TypeError, ValueError, YAMLError) as error:
        raise UserError(f"{task} has no line 'task: NAME'.", key="lm_eval") from error
