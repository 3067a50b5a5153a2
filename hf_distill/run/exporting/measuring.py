"""Exports a student, and compares what was written with the student in PyTorch before it is announced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hf_distill.errors import UserError
from hf_distill.export import FORMATS
from hf_distill.export.beside import SCRIPT, longest
from hf_distill.export.causal import WritingSession
from hf_distill.export.graph import input_names
from hf_distill.report.exports import PYTORCH, Exported
from hf_distill.report.latency import measure_calls
from hf_distill.run.evaluation import timed_inputs
from hf_distill.run.exporting import outputs
from hf_distill.run.exporting.edge import on_edge
from hf_distill.run.exporting.writing import check_place, weight_of, write
from hf_distill.run.exporting.writing_texts import PROMPTS, prompts_of, write_texts

if TYPE_CHECKING:
    from collections.abc import Callable

    from hf_distill.export import FinishedStudent, Format, Session
    from hf_distill.export.section import Export
    from hf_distill.report.exports import Edge, WritingFigures
    from hf_distill.report.timing import Latency
    from hf_distill.tasks import Prepared

# Largest share of the largest output by which an exact format may differ from PyTorch: a hundred times of what other
# orders of the same sums cause.
TOLERANCE = 1e-3
# Difference that float32 explains even where all outputs are near 0.
ROUNDING = 1e-5
# Rows of the eval split that are compared; of more, these many of all lengths.
ROWS = 2_000
# Rows that are run alone and padded to a batch, and texts of the process without PyTorch.
ALONE, TEXTS = 8, 50
# Endings of files that hold no part of the model.
_BESIDE = (".json", ".py", ".txt", ".jinja")


@dataclass(frozen=True)
class Job:
    """What is exported, and on what it is compared.

    Attributes:
        student: The student.
        into: Directory in which each format gets its folder.
        options: Section `export` of the recipe.
        prepared: The data.
        batch_size: Rows of a batch.
        timed: Whether speed and memory are measured.
        say: Called with lines for the user.
    """

    student: FinishedStudent
    into: Path
    options: Export
    prepared: Prepared
    batch_size: int
    timed: bool
    say: Callable[[str], None]

    def exports(self) -> tuple[Exported, ...]:
        """Write all formats, and return their figures, PyTorch's first.

        Raises:
            UserError: A format cannot be written, or differs from PyTorch where it must not.
        """
        formats = {name: FORMATS[name]() for name in self.options.formats}
        for name in formats:
            check_place(name, self.student, self.into)
        for name, one in formats.items():
            new = write(one, self.student, self.into, self.options)
            self.say(f"{name}: {'written' if new else 'found, not exported again'} in {self.into / name}")
        threads = torch.get_num_threads()
        sessions = {name: one.open(self.into / name, threads) for name, one in formats.items()}
        calls: dict[str, outputs.Call] = {PYTORCH: outputs.from_model(self.student.model), **sessions}
        names = input_names(self.student)
        evaluator, rows = self.prepared.evaluator.on(_spread(len(self.prepared.eval), ROWS))
        found = outputs.run(self.prepared, calls, names, rows, self.batch_size)
        for name, one in formats.items():
            self._check(one, found[name], sessions[name], names)
        writing = self._writing(formats, sessions, found, threads)
        speeds = self._speeds(formats, calls, names) if self.timed else {}
        predictions = {name: got.predictions() for name, got in found.items()}
        results = []
        for name, got in found.items():
            here = name == PYTORCH
            error = None if here else evaluator.gain_error(predictions[name], predictions[PYTORCH])
            folder = self.student.directory if here else self.into / name
            results.append(
                Exported(
                    format=name,
                    directory="." if here else name,
                    weights="float32" if here else formats[name].weights,
                    bytes=_weights(self.student) if here else weight_of(folder, _BESIDE),
                    rows=len(rows),
                    metrics=evaluator.evaluate(predictions[name]),
                    difference=None if here else got.difference,
                    agreement=None if here or not got.compared else got.agreed / got.compared,
                    latency=speeds.get(name),
                    edge=None if here else self._edge(folder, sessions[name], threads),
                    writing=writing.get(name),
                    error=error,
                )
            )
        return tuple(results)

    def _check(self, format: Format, found: outputs.Outputs, session: Session, names: Sequence[str]) -> None:
        """Refuse an exact format that differs from PyTorch, or whose results depend on the padding."""
        if not format.exact:
            return
        limit = _limit(found)
        if found.difference > limit:
            raise UserError(
                f"{format.name} gives other results than PyTorch: an output differs by {found.difference:.3g}, and "
                f"rounding explains {limit:.3g}. It is not usable. Please report this, with the student's config.json."
            )
        some = _spread(len(self.prepared.eval), ALONE)
        batch = next(outputs.batches(self.prepared, some, ALONE))
        padded = outputs.alone(session, outputs.arrays(batch, names), self.prepared.layout.outputs)
        if padded > limit:
            raise UserError(
                f"{format.name} gives other results for a text that is padded to the length of others: an output "
                f"differs by {padded:.3g}. It is not usable. Please report this, with the student's config.json."
            )

    def _speeds(
        self, formats: Mapping[str, Format], calls: Mapping[str, outputs.Call], names: Sequence[str]
    ) -> dict[str, Latency]:
        """Return the speed of all formats on the same two inputs, with as many threads as PyTorch has."""
        single, batch = (outputs.arrays(one, names) for one in timed_inputs(self.prepared, self.batch_size))
        shapes = tuple((one["input_ids"].shape[0], one["input_ids"].shape[1]) for one in (single, batch))
        both = {name: (partial(call, single), partial(call, batch)) for name, call in calls.items()}
        dtypes = {PYTORCH: "float32", **{name: one.weights for name, one in formats.items()}}
        return measure_calls(both, (shapes[0], shapes[1]), dtypes)

    def _writing(
        self,
        formats: Mapping[str, Format],
        sessions: Mapping[str, Session],
        found: Mapping[str, outputs.Outputs],
        threads: int,
    ) -> dict[str, WritingFigures]:
        """Return how formats with a cache write texts, PyTorch too; empty if there are none."""
        writers = {name: one for name, one in sessions.items() if isinstance(one, WritingSession)}
        positions = longest(self.student)
        prompts = prompts_of(self._tokens(PROMPTS), positions)
        if not writers or not prompts:
            return {}
        limits = {name: _limit(found[name]) for name in writers if formats[name].exact}
        return write_texts(self.student.model, writers, prompts, limits, threads, positions, timed=self.timed)

    def _tokens(self, most: int) -> list[list[int]]:
        """Return the tokens of some texts of the eval split; of rows with several texts, of the first."""
        rows = [self.prepared.eval[row]["input_ids"] for row in _spread(len(self.prepared.eval), most)]
        return [row[0] if row and isinstance(row[0], list) else row for row in rows]

    def _edge(self, folder: Path, session: Session, threads: int) -> Edge | None:
        if not self.timed or not (folder / SCRIPT).is_file():
            return None
        texts = [text for text in map(self._text, self._tokens(TEXTS)) if text.strip()]
        return on_edge(folder, self.student, session, texts, threads) if texts else None

    def _text(self, ids: list[int]) -> str:
        """Return the text of some tokens; without its end if its own tokens are more than the student reads."""
        tokenizer, most = self.student.tokenizer, longest(self.student)
        text: Any = tokenizer.decode(ids, skip_special_tokens=True)
        if most is None or not ids or len(tokenizer(text, verbose=False)["input_ids"]) <= most:
            return text  # type: ignore[no-any-return]
        return self._text(ids[:-1])


def _limit(found: outputs.Outputs) -> float:
    """Return by how much an exact format may differ."""
    return max(TOLERANCE * found.largest, ROUNDING)


def _spread(count: int, most: int) -> list[int]:
    """Return numbers of rows from the first to the last, at most so many."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int)).tolist()  # type: ignore[no-any-return]


def _weights(student: FinishedStudent) -> int:
    """Return the bytes of the student's weights in PyTorch, each once."""
    return sum(one.numel() * one.element_size() for one in student.model.parameters())
