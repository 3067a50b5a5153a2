"""Targets from a server: the texts of a batch are sent to it, and its log-probabilities are the rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from hf_distill import parallel
from hf_distill.errors import UserError
from hf_distill.files.fingerprint import fingerprint
from hf_distill.models.inspection import base_model
from hf_distill.models.needs import Gives
from hf_distill.models.target_model import PREFIX, RunModel, Targets, TargetSource, Writing
from hf_distill.models.target_rows import SparseRows
from hf_distill.models.tokenizers import vocabulary
from hf_distill.rows.tokens import TokenRows
from hf_distill.servers import Servers
from hf_distill.teachers.served.answers import Answers
from hf_distill.teachers.served.apis import Api
from hf_distill.teachers.served.asking import Asked, Asking
from hf_distill.teachers.served.greeting import greet
from hf_distill.teachers.served.scored import TextRows

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_distill.objectives import Objective

# Columns that are added to the batches of a step.
COLUMNS = ("indices", "log_probabilities", "remaining", "written")
# How many examples are collated at once to find the losses of their labels.
_BATCH = 64
SERVED = "a teacher behind a server"
WHY = "servers give the log-probabilities of given tokens at temperature 1, whatever temperature they are asked for"


class ServedRows(TargetSource):
    """A language model behind a server.

    Args:
        servers: Where it is.
        api: What kind of server it is.
        name: What the server calls the model.
        top: How many of the likeliest tokens of each row are asked for, at most all; 0 for the token of the text alone.
        answers: Where answers are stored.
        local: Directory or Hub id of the same model, to compare with; None for none.
    """

    def __init__(
        self, servers: Servers, api: Api, name: str, top: int, answers: Answers, local: str | None = None
    ) -> None:
        super().__init__()
        self.config = None
        self.servers, self.api, self.name, self.top, self.answers, self.local = servers, api, name, top, answers, local
        self.temperature = 1.0
        # Whether any objective compares the student with it; if not, nothing is asked in training.
        self._compared = True
        self._layout: TokenRows | None = None
        self._asking: Asking | None = None

    # ---- What it is ----

    @property
    def takes(self) -> frozenset[str]:
        """The tokens, which of them are padding, and what is added to a step."""
        return frozenset({"input_ids", "attention_mask", *(f"{PREFIX}{name}" for name in COLUMNS)})

    @property
    def gives_outputs(self) -> bool:
        """Always false: there are only rows."""
        return False

    @property
    def gives_rows(self) -> bool:
        """Always true."""
        return True

    @property
    def device(self) -> torch.device:
        """The processor: what it gives is put where the batch is."""
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """Precision of what it gives."""
        return torch.float32

    def gives(self) -> Gives:
        """Return what it gives to objectives."""
        return gives(self.top, None if self._asking is None else self._asking.classes)

    def fingerprint(self) -> str:
        """Return a hash of the model's name and of how much of its rows is asked for."""
        return fingerprint("served", self.api.name, self.name, self.top)

    def facts(self) -> Mapping[str, Any]:
        """Return the model and how much of it was seen; no address, which may be nobody's business."""
        return {"model behind a server": self.name, "server": self.api.name, "likeliest tokens asked for": self.top}

    def who(self) -> str:
        """Return the sentence that tells readers of a report who its teacher is."""
        return f"The teacher here is {self.name} behind a server, which gave log-probabilities of given tokens."

    def writer(self, tokenizer: Any) -> Writing:
        """Return what writes on the server, which goes on with tokens as they are."""
        from hf_distill.completions.backends.vllm_server import VLLMServer
        from hf_distill.completions.ends import end_ids
        from hf_distill.teachers.served.writer import ServedWriter

        asking = self._asking
        assert asking is not None
        ends = end_ids(self, tokenizer)
        server = VLLMServer(self.servers, self.name, None, ends=ends, classes=vocabulary(tokenizer), width=asking.width)
        # `top` has no part in it.
        return Writing(lambda: ServedWriter(server), ["served", self.api.name, self.name, asking.known.root, *ends])

    # ---- What it does in a training ----

    def begin(self, student: nn.Module) -> None:
        """Take the configuration of the student: rows are over its tokens."""
        self.config = self.config or getattr(base_model(student), "config", None)

    def read_by(self, layout: TokenRows, tokenizer: Any) -> None:
        """Find out once, before the first request, whether the server gives what is needed, for these tokens.

        Raises:
            UserError: It does not, or does not answer.
        """
        self._layout = layout
        if self._asking is None:
            assert self.config is not None
            width: int = self.config.get_text_config().vocab_size
            classes = layout.classes or width
            own = Asking(self.servers, self.api, self.name, min(self.top, classes), classes, width)
            self._asking = replace(own, known=parallel.asked_once(lambda: greet(own, tokenizer, self.local)))

    def for_objectives(self, objectives: Iterable[Objective], student: Any, collate: Any) -> tuple[ServedRows, Any]:
        """Return itself, at the temperature of the objectives, which has to be 1 unless all tokens are there.

        Raises:
            UserError: They have several temperatures.
        """
        needs = [one.needs() for one in objectives]
        wanted = {at for one in needs if one.teacher for at in one.temperatures} or {1.0}
        if len(wanted) > 1:
            raise UserError(f"{SERVED} gives log-probabilities at one temperature; wanted are {sorted(wanted)}.")
        (self.temperature,), self._compared = wanted, any(one.teacher for one in needs) or not needs
        return self, collate

    def of_step(self, batches: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Return the batches with their rows, all asked for at once; a failure in one process is one in all."""
        if not self._compared:
            return list(batches)
        found: list[list[list[TextRows]]] = []
        parallel.together(lambda: found.append(self._by_batch([self.asked(batch) for batch in batches])))
        return [
            {**batch, **self._columns(rows, batch["input_ids"].device)}
            for batch, rows in zip(batches, found[0], strict=True)
        ]

    def targets(self, batch: Mapping[str, Any], run: RunModel | None = None) -> Targets:
        """Return the rows of a batch: those of its step, or asked for now."""
        if f"{PREFIX}{COLUMNS[0]}" not in batch:
            found = self._by_batch([self.asked(batch)])[0]
            batch = {**batch, **self._columns(found, batch["input_ids"].device)}
        indices, log_probabilities, remaining, written = (batch[f"{PREFIX}{name}"] for name in COLUMNS)
        rows = SparseRows(indices, log_probabilities, remaining, written=written)
        assert self._layout is not None
        # With the student's tokens, each that a row predicts is a span.
        return Targets(rows=rows.at(self.temperature), spans=self._layout.written(batch).by_span(written))

    def losses_of(self, split: Dataset, collate: Any) -> Any:
        """Return sum and number of `-log p` of the labels of every example, `(rows, 2)`."""
        plain = split.remove_columns([name for name in ("length",) if name in split.column_names])
        starts = range(0, len(plain), _BATCH)
        batches = [collate(plain.select(range(at, min(at + _BATCH, len(plain)))).to_list()) for at in starts]
        sums = []
        for batch, rows in zip(batches, self._by_batch([self.asked(one) for one in batches]), strict=True):
            assert self._layout is not None
            places = self._layout.places(batch)
            assert places is not None
            learned = (places.labels >= 0).double()
            losses = -self._columns(rows, learned.device)[f"{PREFIX}written"].double() * learned
            found = learned.new_zeros(len(batch["input_ids"]), 2)
            sums.append(found.index_add(0, places.example, torch.stack((losses, learned), -1)))
        return torch.cat(sums).numpy()

    # ---- Rows ----

    def asked(self, batch: Mapping[str, Any]) -> list[Asked]:
        """Return what is asked for each example of a batch that has rows."""
        assert self._layout is not None
        places = self._layout.places(batch)
        assert places is not None
        ids, attended = batch["input_ids"], batch.get("attention_mask")
        real = torch.ones_like(ids) if attended is None else (attended != 0).to(ids)
        # Of each token its place without padding. A row predicts the token after its own position.
        place = real.cumsum(-1) - 1
        counts = torch.bincount(places.example, minlength=len(ids)).tolist()
        at = place[places.example, places.position + 1].cpu().split(counts)
        return [
            Asked(tuple(row[mask != 0][: int(some[-1]) + 1].tolist()), tuple(some.tolist()))
            for row, mask, some in zip(ids.cpu(), real.cpu(), at, strict=True)
            if len(some)
        ]

    def _by_batch(self, batches: Sequence[Sequence[Asked]]) -> list[list[TextRows]]:
        """Return the rows of each example, by batch: stored ones, and others asked for now and stored as they come."""
        asking = self._asking
        assert asking is not None
        wanted = sorted({one for batch in batches for one in batch}, key=lambda one: (len(one.ids), one.ids, one.at))
        keys = {one: asking.key(one) for one in wanted}
        stored = self.answers.find(keys.values())
        found: dict[Asked, TextRows] = {}
        for one, key in keys.items():
            if (known := TextRows.from_bytes(stored.get(key, b""), len(one.at), asking.top)) is not None:
                found[one] = known
        for one, rows in asking.ask([one for one in wanted if one not in found]):
            self.answers.add(keys[one], rows.to_bytes())
            found[one] = rows
        return [[found[one] for one in batch] for batch in batches]

    def _columns(self, rows: Sequence[TextRows], device: torch.device) -> dict[str, Tensor]:
        """Return the columns of a batch."""
        assert self._asking is not None
        every = [*rows, TextRows.empty(self._asking.top)]
        found = {name: torch.from_numpy(np.concatenate([getattr(one, name) for one in every])) for name in COLUMNS}
        found["indices"] = found["indices"].long()
        return {f"{PREFIX}{name}": one.to(device) for name, one in found.items()}


def gives(top: int, classes: int | None) -> Gives:
    """Return what rows from a server give to objectives.

    Args:
        top: How many of the likeliest tokens are asked for.
        classes: Number of tokens of the vocabulary; None if it is not known yet.
    """
    every = classes is not None and top >= classes
    return Gives(
        SERVED,
        classes="top" if top else None,
        temperature=None if every else 1.0,
        why_temperature=WHY,
        exact_logits=False,
        top=None if every else top,
        written=True,
    )
