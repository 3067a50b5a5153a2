"""Mutual learning: peers that train beside the student; and a teacher that trains on labels meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
from pydantic import Field

from hf_distill.component import component
from hf_distill.data.label_names import label_names
from hf_distill.errors import UserError
from hf_distill.models.needs import Gives
from hf_distill.models.target_model import TargetSource
from hf_distill.students import Student
from hf_distill.students.base import MeasuredStudent
from hf_distill.students.freezing import freeze
from hf_distill.teachers.base import FineTune, FineTuning, Teacher, config_of_student, under
from hf_distill.teachers.mutual.peers import GIVES, GIVES_ONLINE, Mutual

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PretrainedConfig

    from hf_distill.models.loading import Head
    from hf_distill.models.pair import Pair
    from hf_distill.objectives import Objective
    from hf_distill.tasks import Prepared, Setup, Task

# Distance between the seeds of two peers: far more than a run has seeds, so that no peer starts as another seed's
# student.
APART = 1_000_003


@component
class MutualTeacher(Teacher):
    """Peers that train beside the student, which learns from their mean (Zhang et al. 2018, arXiv 1706.00384).

    Student and peers all have the loss of the recipe, each with the mean distribution of all the others as its teacher
    (the paper's DML_e, section 3.4; with one peer equations 4 and 5). The report's teacher is the mean of the peers at
    the end of the training.

    With `online`, a model trains on labels alone while the student learns from it.

    Attributes:
        peers: The peers, as `student` entries that name a model. Default: peers of the student's own kind.
        count: How many peers of the student's own kind, with other random weights. Default: 1.
        learning_rate: Peak of the peers' learning rate, which follows the student's schedule. Default: the student's.
        export: Save the peers beside the student, in `peers/1`, `peers/2`, ...
        online: One teacher that trains on labels alone, instead of peers.
        teacher: That teacher, with `online`: `pretrained` or `finetuned`. Default: none.
    """

    name: ClassVar[str] = "mutual"

    peers: list[Student] | None = None
    count: Annotated[int, Field(ge=1)] | None = None
    learning_rate: Annotated[float, Field(gt=0.0)] | None = None
    export: bool = False
    online: bool = False
    teacher: Teacher | None = None

    def __post_init__(self) -> None:
        """Refuse settings that exclude each other, and models that cannot be made or trained."""
        if self.online != (self.teacher is not None):
            raise ValueError("online and teacher belong together: {name: mutual, online: true, teacher: {...}}")
        if self.online and (self.peers is not None or self.count is not None):
            raise ValueError("online has one teacher, and no peers. Leave peers and count out")
        if self.peers is not None and self.count is not None:
            raise ValueError("peers and count are given, and peers already says how many. Leave one of the two out")
        if self.peers == []:
            raise ValueError("peers: wanted one or more, found none")
        for index, one in enumerate(self.peers or ()):
            if isinstance(one, MeasuredStudent):
                raise ValueError(f"peers[{index}]: {_not_a_peer(one)}")
            if one.qat is not None:
                raise ValueError(f"peers[{index}]: qat is for the student, and peers train unrounded. Leave it out")
            if one.copies_teacher or one.source is None:
                raise ValueError(f"peers[{index}]: there is no teacher to take layers or sizes from. Add model: ...")
        if self.teacher is not None:
            _check_trainable(self.teacher)

    # ---- Of a recipe ----

    @property
    def has_head(self) -> bool:
        """Whether the online teacher's checkpoint has a trained head; false for peers."""
        return self.teacher is not None and self.teacher.has_head

    @property
    def is_without_model(self) -> bool:
        """Whether there are peers, whose head and labels are the student's."""
        return self.teacher is None

    @property
    def trusts_code(self) -> bool:
        """Whether Python code that comes with one of the models may run."""
        own = super().trusts_code
        return own or any(getattr(one, "trust_remote_code", False) for one in self.peers or ())

    @property
    def fine_tuning(self) -> Mapping[str, FineTuning]:
        """Key path -> training of the online teacher, if the run trains it first."""
        return {f"{path}.{key}": how for path, inner in self._inner() for key, how in inner.fine_tuning.items()}

    @property
    def output_directories(self) -> tuple[str | None, ...]:
        """Directories of models that are trained first."""
        return tuple(place for _, inner in self._inner() for place in inner.output_directories)

    @property
    def follows_student(self) -> bool:
        """Always true: the peers learn from the student."""
        return True

    @property
    def not_cached(self) -> str:
        """Why the targets of a model that trains cannot be stored."""
        return "its models train while the student does, so their targets cannot be stored. Take it itself"

    def _inner(self) -> Iterator[tuple[str, Teacher]]:
        return iter([] if self.teacher is None else [("teacher", self.teacher)])

    def members(self) -> Iterator[tuple[str, Teacher]]:
        """Yield path and entry of the online teacher; this entry itself for peers."""
        return super().members() if self.teacher is None else self._inner()

    def every_entry(self) -> Iterator[Teacher]:
        """Yield this entry and the one inside it."""
        yield self
        yield from (inner for _, inner in self._inner())

    def config(self) -> PretrainedConfig:
        """Return the configuration of the online teacher; a default one for peers."""
        from transformers import PretrainedConfig

        if self.teacher is None:
            return PretrainedConfig()
        with under("teacher"):
            return self.teacher.config()

    def config_beside(self, student: Student) -> PretrainedConfig:
        """Return the configuration of the online teacher; for peers that of the student's checkpoint.

        Raises:
            UserError: The student is to be made from the teacher, and there are peers only.
        """
        if self.teacher is not None:
            return self.config()
        if self.peers is None and isinstance(student, MeasuredStudent):
            raise UserError(f"the peers are of the student's kind, and {_not_a_peer(student)}")
        return config_of_student(student, "the teacher is made of peers that train from the start, like the student")

    def in_words(self, config: PretrainedConfig, size: Callable[[PretrainedConfig], str]) -> str:
        """Return the description that `--check` prints."""
        if self.teacher is not None:
            return f"{size(config)}; it trains on labels meanwhile"
        if self.peers is None:
            return f"peers like the student, which train with it: {self.count or 1}"
        return "; ".join(f"peer {at}: {size(one.config(config))}" for at, one in enumerate(self.peers, 1))

    # ---- Checks ----

    def check_task(self, task: Task) -> None:
        """Refuse a task without distributions or values to average."""
        for path, inner in self._inner():
            with under(path):
                inner.check_task(task)
        if task.name == "sentence-similarity":
            raise UserError(
                f"{task.name} compares vectors of texts, and models that train apart place them anywhere. Take one "
                "teacher: {name: finetuned, model: ...}.",
                key="name",
            )

    def check_pair(self, task: Task, every: Sequence[Objective], pair: Pair) -> None:
        """Refuse objectives without labels, and peers with other labels or tokens than the student's."""
        if self.teacher is None and not any(one.needs().labels and one.has_weight for one in every):
            raise UserError(
                "peers that learn only from each other need no more than to agree, on anything. Add an objective on "
                "labels: {name: labels}."
            )
        for index, one in enumerate(self.peers or ()):
            with under(f"peers[{index}]"):
                own = one.own_config() or one.config(pair.teacher)
                task.check_model(own)
                _check_tokens(one, pair)
                if task.head_kind == "labels" and _has_head(own, task):
                    _check_labels(label_names(own), label_names(pair.student_head) if pair.student_head else None)

    def gives(self, task: Task, every: Sequence[Objective], pair: Pair | None) -> Gives:
        """Return what it gives to objectives: rows; an online teacher hidden states too."""
        return GIVES if self.teacher is None else GIVES_ONLINE

    def prepare(
        self, task: Task, splits: Mapping[str, Dataset], beside: Mapping[str, Dataset], setup: Setup, pair: Pair
    ) -> tuple[Prepared, tuple[Prepared, TargetSource] | None]:
        """Return the prepared data; refuse data without labels, and metrics of generated texts."""
        prepared, stored = super().prepare(task, splits, beside, setup, pair)
        if not prepared.labelled:
            raise UserError(
                "the train split has no labels, and models that train beside the student learn from labels. Take a "
                "trained teacher: {name: pretrained, model: ...}.",
                key="teacher.name",
            )
        several = self.teacher is None and (self.count or len(self.peers or "1")) > 1
        if several and any(map(prepared.evaluator.generates, prepared.evaluator.names)):
            raise UserError(
                "metrics of generated texts need one model that writes them, and the teacher is the mean of several "
                "peers. Wanted one peer, or metrics of its distributions, such as perplexity.",
                key="metrics",
            )
        wanted = _names(prepared.head)
        for index, one in enumerate(self.peers or ()):
            own = one.own_config()
            if own is not None and task.head_kind == "labels" and _has_head(own, task):
                with under(f"teacher.peers[{index}]"):
                    _check_labels(label_names(own), wanted)
        return prepared, stored

    # ---- Models ----

    def load(self, head: Head, fine_tune: FineTune) -> TargetSource:
        """Return the source with the online teacher or the named peers.

        Raises:
            UserError: The peers are of the student's kind, and there is no entry that says which.
        """
        if self.teacher is not None:
            with under("teacher"):
                model = self.teacher.load(head, fine_tune)
            return Mutual([model], online=True, learning_rate=self.learning_rate, export=self.export)
        if self.peers is None:
            raise UserError(
                "a trainer cannot make peers of the student's kind. Wanted hf_distill.teachers.mutual.Mutual([model, "
                "...]), or peers=[...]."
            )
        return self._load_peers(self.peers, head)

    def load_beside(self, student: Student, head: Head, fine_tune: FineTune) -> TargetSource:
        """Return what `load` returns, with peers of the student's kind where none is named."""
        if self.teacher is not None or self.peers is not None:
            return self.load(head, fine_tune)
        return self._load_peers([student] * (self.count or 1), head)

    def _load_peers(self, entries: Sequence[Student], head: Head) -> TargetSource:
        def make(seed: int) -> list[Any]:
            models = []
            for index, one in enumerate(entries):
                torch.manual_seed(seed + APART * (index + 1))
                with under("" if self.peers is None else f"peers[{index}]"):
                    # It only asks for the configuration: nothing is copied.
                    beside: Any = SimpleNamespace(config=config_of_student(one, "a peer has no teacher"))
                    models.append(freeze(one.make(beside, head), one.freeze))
            torch.manual_seed(seed)
            return models

        seed = torch.initial_seed()
        return Mutual(make(seed), learning_rate=self.learning_rate, export=self.export, seed=seed, make=make)


def _not_a_peer(student: Student) -> str:
    return (
        f"{student.name} is made or trained in a way of its own, and peers train all their weights from the start. "
        "Wanted peers: [{name: pretrained, model: ...}]"
    )


def _check_trainable(teacher: Teacher) -> None:
    """Refuse an online teacher that is not one model with weights to train."""
    several = [path for path, _ in teacher.members()] != [""]
    other = teacher.own_inputs or teacher.reads_another_prompt
    if teacher.is_without_model or teacher.caches or other or several:
        raise ValueError(f"teacher: wanted a model, pretrained or finetuned; found {teacher.name}")
    if teacher.is_quantized or getattr(teacher, "dtype", "float32") != "float32":
        raise ValueError("teacher: it trains, which needs weights in float32. Leave dtype and quantization out")


def _has_head(config: PretrainedConfig, task: Task) -> bool:
    from hf_distill.models.outline import has_head

    return has_head(config, task.auto_class)


def _names(head: Head) -> list[str] | None:
    names = head.settings.get("id2label")
    return None if not names else [names[key] for key in sorted(names)]


def _check_labels(own: Sequence[str] | None, wanted: Sequence[str] | None) -> None:
    """Refuse a peer whose trained head has other labels than the student, or the same in another order."""
    if not own or not wanted or list(own) == list(wanted):
        return
    differ = "the same labels in another order" if set(own) == set(wanted) else "other labels"
    raise UserError(
        f"its head has {differ} than the student's: {', '.join(own)}, and not {', '.join(wanted)}. Start from a "
        "checkpoint without a head for this task, or from one with the student's labels.",
        key="model",
    )


def _check_tokens(peer: Student, pair: Pair) -> None:
    """Refuse a peer that was trained with other tokens than the student."""
    from hf_distill.models.loading import open_tokenizer

    if peer.vocabulary is None:
        return
    tokenizer = open_tokenizer(
        peer.vocabulary, key="model", trust_remote_code=getattr(peer, "trust_remote_code", False)
    )
    ours, theirs = pair.tokenizer.get_vocab(), tokenizer.get_vocab()
    if ours != theirs and pair.cut is not None:
        raise UserError(
            f"its vocabulary has {len(theirs):,} tokens, and that of the student is cut to {len(ours):,}, with ids of "
            "their own, which student and peers both read. Take a student with its whole vocabulary.",
            key="model",
        )
    if ours != theirs:
        raise UserError(
            f"its vocabulary is not the student's ({len(theirs):,} and {len(ours):,} tokens), and student and peers "
            "read the same batches. Choose models of one family.",
            key="model",
        )
