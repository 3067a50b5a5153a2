"""A teacher whose targets are stored in a cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from hf_distill import parallel
from hf_distill.component import component, entry
from hf_distill.errors import UserError
from hf_distill.models.layers import Index, Part, States, each_once
from hf_distill.teachers.around import AroundTeacher
from hf_distill.teachers.base import FineTune, Storing, Teacher, deeper, under
from hf_distill.teachers.loaded import as_entry

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PretrainedConfig, PreTrainedModel

    from hf_distill.cache.cache import Cache
    from hf_distill.cache.format import Kept
    from hf_distill.models.loading import Head
    from hf_distill.models.needs import Gives
    from hf_distill.models.pair import Pair
    from hf_distill.models.target_model import TargetSource
    from hf_distill.objectives import Objective
    from hf_distill.students import Student
    from hf_distill.tasks import Prepared, Setup, Task

# Python users may write a list, as YAML does.
Indices = Annotated[
    tuple[Index, ...],
    Field(min_length=1),
    BeforeValidator(lambda indices: tuple(indices) if isinstance(indices, list) else indices),
    AfterValidator(each_once),
]


@component
class CachedTeacher(AroundTeacher):
    """Run a teacher once and store its outputs, for all epochs, seeds and students.

    A classifier's logits are stored whole, so the loss equals the live teacher's. Over a vocabulary, the most likely
    tokens are stored, softened by the temperature of the objectives, with the total probability of all others. Hidden
    states are stored for the layers that the objectives compare.

    Attributes:
        teacher: The teacher whose outputs are stored: an entry like any other.
        path: Directory of the cache. Default: one for each combination of teacher, settings and data, beside the cache
            of `datasets`, where every recipe finds it.
        top: How many of the most likely tokens to store at each position, for outputs over a vocabulary.
        tail: How many of the remaining tokens to sample at each position as an estimate of the rest. The gradients of
            `kl` and `soft_cross_entropy` are then right on average, even if `top` holds little of the probability;
            other objectives are refused. With `top: 12` and `tail: 6` a position takes 62 bytes.
        precision: Precision of the stored log-probabilities; `float32` stores them exactly.
        layers: Layers whose hidden states are stored for every token: `[0, 4, 8]`, where 0 is the output of the
            embeddings; for an encoder-decoder `{encoder: [6, 12], decoder: [12]}`. Default: what the objectives
            compare, and no more.
        hidden_precision: Precision of the stored hidden states; `float32` stores them exactly.
        frozen_masks: For fill-mask: reuse the masks of the first epoch in every epoch.
        repo_id: Dataset on the Hub, `user/name`, to download the cache from or, with `push`, to publish it to. Default:
            none.
        push: Publish the cache once it is complete.
        private: Whether a repository that the push creates is private. Default: the Hub's.
    """

    name: ClassVar[str] = "cached"

    teacher: Annotated[Teacher, BeforeValidator(as_entry)]
    path: str | None = None
    top: Annotated[int, Field(gt=0)] = 64
    tail: Annotated[int, Field(ge=0)] = 0
    precision: Literal["float16", "float32"] = "float16"
    layers: Indices | dict[Part, Indices] | None = None
    hidden_precision: Literal["float16", "float32"] = "float16"
    frozen_masks: bool = False
    repo_id: str | None = None
    push: bool = False
    private: bool | None = None

    def __post_init__(self) -> None:
        """Refuse a teacher whose targets cannot be stored, and two places for the cache."""
        if (reason := self.teacher.not_cached) is not None:
            raise ValueError(reason)
        if self.push and self.repo_id is None:
            raise ValueError("push needs a repo_id, such as user/name")
        if self.repo_id is not None and self.path is not None and not self.push:
            raise ValueError("the cache is either at path or on the Hub: leave out path or repo_id, or set push: true")

    def members(self) -> Iterator[tuple[str, Teacher]]:
        """Yield path and entry of each model of the inner entry."""
        return ((path and f"teacher.{path}", one) for path, one in self.teacher.members())

    def rows_in_words(self, labelled: str) -> str:
        """Return in words the rows on which the run trains the models of the inner entry."""
        return self.teacher.rows_in_words(labelled)

    def for_next(self, model: Teacher) -> Teacher:
        """Return a cache of another model: in the default folder, not published, with the layers that are compared."""
        return replace(self, teacher=model, path=None, layers=None, repo_id=None, push=False, private=None)

    @property
    def not_cached(self) -> str:
        """Why a cached teacher cannot be cached again."""
        return "the teacher itself is wanted here, not a cached one"

    @property
    def caches(self) -> bool:
        """Always true: the targets are stored."""
        return True

    @property
    def place(self) -> str | None:
        """Directory of the cache, or with `--targets-only` of the published targets."""
        return self.path

    @property
    def published(self) -> tuple[str | None, bool | None] | None:
        """Repository to which the cache is pushed, and whether it is private; None without push."""
        return (self.repo_id, self.private) if self.push else None

    @property
    def own_inputs(self) -> bool:
        """Whether the inner teacher makes its own inputs."""
        return self.teacher.own_inputs

    @property
    def reads(self) -> tuple[str, ...]:
        """The columns of the data that the inner teacher reads beside those of the task."""
        return self.teacher.reads

    def config_beside(self, student: Student) -> PretrainedConfig:
        """Return the configuration of the inner teacher in a run with this student."""
        with under("teacher"):
            return self.teacher.config_beside(student)

    def in_words(self, config: PretrainedConfig, size: Callable[[PretrainedConfig], str]) -> str:
        """Return the description of the inner teacher."""
        return self.teacher.in_words(config, size)

    def prepare(
        self, task: Task, splits: Mapping[str, Dataset], beside: Mapping[str, Dataset], setup: Setup, pair: Pair
    ) -> tuple[Prepared, tuple[Prepared, TargetSource] | None]:
        """Return what the inner teacher prepares, with fixed masks if `frozen_masks` is true."""
        with deeper("teacher"):
            prepared, stored = self.teacher.prepare(task, splits, beside, setup, pair)
        return self.freeze(prepared), stored

    def look(self, task: Task, splits: Mapping[str, Dataset], beside: Mapping[str, Dataset], pair: Pair) -> None:
        """Check what the inner teacher checks."""
        with under("teacher"):
            self.teacher.look(task, splits, beside, pair)

    def load(self, head: Head, fine_tune: FineTune) -> PreTrainedModel | TargetSource:
        """Return the inner teacher."""
        with under("teacher"):
            return self.teacher.load(head, fine_tune)

    def check_task(self, task: Task) -> None:
        """Refuse a task whose inputs change in every epoch, unless the masks are frozen."""
        with under("teacher"):
            self.teacher.check_task(task)
        if task.changes_inputs and not self.frozen_masks:
            raise UserError(
                f"{task.name} masks other tokens in every epoch, so stored targets would not fit. Freeze the masks "
                "(frozen_masks: true), or run the teacher in training (without cached).",
                key="frozen_masks",
            )
        if self.frozen_masks and not task.changes_inputs:
            raise UserError(f"{task.name} has no masks to freeze. Leave it out.", key="frozen_masks")

    def check_pair(self, task: Task, every: Sequence[Objective], pair: Pair) -> None:
        """Refuse layers that the teacher does not have, and hidden states of tokens that the student does not read."""
        from hf_distill.cache.hidden_states import columns_of

        with under("teacher"):
            self.teacher.check_pair(task, every, pair)
            if self.teacher.by_temperature and any(len(one.needs().temperatures) > 1 for one in every):
                raise UserError(
                    "a mean of distributions is stored at the temperatures of the objectives, and one of them changes "
                    "its temperature over the training. Take combine: logits, which is right at every temperature, or "
                    "the ensemble without cached.",
                    key="combine",
                )
        states = self.states(every, pair)
        inner = self.teacher.gives(task, every, pair)
        if inner.classes is None and inner.written:
            raise UserError(
                f"{inner.whose} gives one number a token, which a cache does not hold. Use it without cached, or let "
                "it give the likeliest tokens (top).",
                key="teacher",
            )
        if self.tail and inner.classes == "top":
            raise UserError(f"no tokens can be drawn from the tail of {inner.whose}, which is not known.", key="tail")
        if lacking := inner.lacking(states):
            raise UserError(
                f"the hidden states of layer {', '.join(map(str, lacking))} would be stored, and {inner.whose} gives "
                "none. Leave out layers and objectives on hidden states, or take one model.",
                key="layers",
            )
        columns_of(pair.teacher, states, "float32")
        whole = [str(one) for one in states if one.of == "tokens"]
        if whole and self.reads_another_prompt:
            raise UserError(
                f"the hidden states of layer {', '.join(whole)} would be stored token by token, and with a context the "
                "teacher has other tokens before the same completion. Leave them out, or the context.",
                key="layers",
            )
        if whole and pair.own_tokens:
            raise UserError(
                f"the hidden states of layer {', '.join(whole)} would be stored token by token, but teacher and "
                "student have different tokenizers, so they read different tokens. Leave layers out, and let all "
                "objectives between examples use the same vector (of: mean).",
                key="layers",
            )

    def gives(self, task: Task, every: Sequence[Objective], pair: Pair | None) -> Gives:
        """Return what the cache will give to objectives."""
        gives = planned(self, task, every, pair).gives()
        gives = replace(gives, own_tokens=self.teacher.gives(task, every, pair).own_tokens)
        return gives if pair is not None else replace(gives, states=None)

    def states(self, objectives: Sequence[Objective], pair: Pair) -> tuple[States, ...]:
        """Return the hidden states to store.

        Args:
            objectives: Objectives of all stages.
            pair: Teacher and student.

        Raises:
            UserError: `layers` names encoder and decoder for a model with one stack, or does not name them for two.
        """
        from hf_distill.cache.requirements import states_of

        if self.layers is None:
            return states_of(objectives, (pair.student, pair.teacher))
        stacks = self.layers if isinstance(self.layers, dict) else {None: self.layers}
        if pair.teacher.is_encoder_decoder != isinstance(self.layers, dict):
            wanted = "{encoder: [...], decoder: [...]}" if pair.teacher.is_encoder_decoder else "a list, such as [4, 8]"
            raise UserError(
                f"the teacher ({pair.teacher.model_type}) has "
                f"{'an encoder and a decoder' if pair.teacher.is_encoder_decoder else 'one stack of layers'}. "
                f"Wanted: {wanted}.",
                key="layers",
            )
        return tuple(States(layer, part=part) for part, layers in stacks.items() for layer in layers)

    def means(self, objectives: Sequence[Objective]) -> tuple[float, ...]:
        """Return the temperatures at which a mean of whole distributions is stored: 1, and those of the objectives."""
        every = (objective.needs() for objective in objectives)
        wanted = {one for needs in every if needs.teacher for one in needs.temperatures}
        return (1.0, *sorted(wanted - {1.0}))

    def kept_of(self, source: TargetSource, storing: Storing) -> Kept:
        """Return what to store of a source of targets: of one that gives rows, what it gives."""
        from hf_distill.cache.format import Kept

        if source.gives_rows:
            return planned(self, storing.task, storing.objectives, storing.pair)
        return Kept.of(
            source.copied,
            storing.data.layout,
            top=self.top,
            tail=self.tail,
            temperature=self.temperature(storing.objectives),
            precision=self.precision,
            states=self.states(storing.objectives, storing.pair),
            hidden_precision=self.hidden_precision,
        )

    def temperature(self, objectives: Sequence[Objective]) -> float:
        """Return the temperature of stored token probabilities: that of the first objective with one, else 1."""
        every = (objective.needs() for objective in objectives)
        return next((needs.temperatures[0] for needs in every if needs.teacher and len(needs.temperatures) == 1), 1.0)

    def freeze(self, prepared: Prepared) -> Prepared:
        """Return the data, with fixed masks if `frozen_masks` is true."""
        freeze = getattr(prepared.collator, "freeze", None)
        if not self.frozen_masks or freeze is None:
            return prepared
        return replace(prepared, train=freeze(prepared.train))

    def cached_in_words(self, task: Task, objectives: Sequence[Objective], pair: Pair) -> str:
        """Return a description of what will be stored, with its size for each position, token or text."""
        from hf_distill.cache.cache import amount
        from hf_distill.cache.hidden_states import in_words

        kept = planned(self, task, objectives, pair)
        words = "whole outputs in float32"
        if kept.is_sparse:
            words = f"{kept.in_words()}, {kept.row_bytes()} bytes a position"
        elif self.teacher.by_temperature:
            words += f", merged at temperature {' and '.join(f'{one:g}' for one in self.means(objectives))}"
        if not kept.states:
            return words
        words += f"; {in_words(kept.states)}: "
        of = {"tokens": 0, "texts": 0}
        for one in kept.states:
            of["tokens" if one.states.of == "tokens" else "texts"] += one.vector_bytes
        words += " and ".join(f"{size:,} bytes a {what[:-1]}" for what, size in of.items() if size)
        if of["tokens"] and pair.max_length is not None and not pair.teacher.is_encoder_decoder:
            words += f", at most {amount(of['tokens'] * pair.max_length)} a text of {pair.max_length} tokens"
        return words

    def cache_for(self, model: Any, storing: Storing) -> Cache:
        """Return the cache of a run: at `path`, on the Hub, or in the default folder."""
        from hf_distill.cache.cache import Cache, default_root
        from hf_distill.cache.hub import fetch
        from hf_distill.models.target_model import as_source

        source = as_source(model)
        assert source is not None
        kept = self.kept_of(source, storing)
        if source.by_temperature and storing.data.layout.has_classes:
            kept = replace(kept, means=(kept.temperature,) if kept.is_sparse else self.means(storing.objectives))
        reads = reading(storing.task, storing.pair, own_inputs=self.own_inputs)
        if self.repo_id is not None and not self.push:
            with parallel.first_process_first():
                path = fetch(self.repo_id)
            return Cache(storing.data, model, kept, reads, path, say=storing.say, complete=True)
        path = default_root() if self.path is None else Path(self.path).expanduser()
        return Cache(storing.data, model, kept, reads, path, self.path is not None, storing.say)


def reading(task: Task, pair: Pair, *, own_inputs: bool = False) -> dict[str, Any]:
    """Return the settings that decide how the teacher reads an example, by their name in error messages.

    Args:
        task: The task of the recipe.
        pair: Teacher and student.
        own_inputs: Whether the teacher makes its own inputs, which `max_length` does not cut.
    """
    from hf_distill.files.fingerprint import fingerprint
    from hf_distill.models.tokenizers import tokenizer_state

    tokenizer = pair.teacher_tokenizer or pair.tokenizer
    template = getattr(tokenizer, "chat_template", None)
    return {
        "tokenizer": fingerprint(tokenizer_state(tokenizer) or type(tokenizer).__name__),
        "chat template": None if template is None else fingerprint(template),
        **({} if own_inputs else {"max_length": pair.max_length}),
        "task": fingerprint(entry(task)),
        **({"tokens left out": fingerprint(pair.left_out)} if pair.left_out else {}),
        **_students_tokenizer(task, pair),
        **({"the student's tokens": fingerprint(pair.cut.kept)} if pair.renumbered and pair.cut else {}),
    }


def _students_tokenizer(task: Task, pair: Pair) -> dict[str, Any]:
    """Return the setting that decides what is stored of a teacher whose tokens are aligned with the student's."""
    from hf_distill.files.fingerprint import fingerprint
    from hf_distill.models.tokenizers import tokenizer_state

    if not (task.aligns_tokens and pair.own_tokens):
        return {}
    return {"the student's tokenizer": fingerprint(tokenizer_state(pair.tokenizer) or type(pair.tokenizer).__name__)}


def planned(own: CachedTeacher, task: Task, objectives: Sequence[Objective], pair: Pair | None) -> Kept:
    """Return what will be stored, as far as it is known before a model is loaded.

    Args:
        own: The teacher entry of the recipe.
        task: The task of the recipe.
        objectives: Objectives of all stages.
        pair: Teacher and student; None if their configurations cannot be read. Then no hidden states are known.

    Raises:
        UserError: The teacher does not have one of the layers.
    """
    from hf_distill.cache.format import Kept
    from hf_distill.cache.hidden_states import columns_of
    from hf_distill.rows.inferred import vocabulary

    columns = () if pair is None else columns_of(pair.teacher, own.states(objectives, pair), own.hidden_precision)
    if task.head_kind != "tokens":
        return Kept(outputs=("logits",), states=columns)
    classes = None if pair is None else vocabulary(pair.student, pair.teacher, pair.tokenizer)
    left_out = () if pair is None or classes is None else tuple(one for one in pair.left_out if one < classes)
    classes = None if classes is None else classes - len(left_out)
    if pair is not None and pair.teacher_tokenizer is not None and pair.own_tokens:
        from hf_distill.tasks.aligned_texts import mapping_of, two_tokenizers

        both = two_tokenizers(pair.tokenizer, pair.student, pair.teacher_tokenizer, pair.teacher)
        both = replace(both, prefix=getattr(task, "alignment", "strict") == "prefix")
        classes, left_out = mapping_of(both).classes, ()
    inner = own.teacher.gives(task, objectives, pair)
    top = min(one for one in (own.top, classes, inner.top) if one is not None)
    return Kept(
        top=top,
        tail=own.tail if classes is None or top < classes else 0,
        temperature=own.temperature(objectives) if inner.temperature is None else inner.temperature,
        precision=own.precision,
        classes=classes or 0,
        left_out=left_out,
        states=columns,
    )
