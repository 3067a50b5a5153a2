"""The cache of a run: where it lies, what decides that it belongs, and `hf-distill cache`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_distill.cache.hub import fetch
from hf_distill.component import entry
from hf_distill.files.atomic import fingerprint
from hf_distill.tasks.tokenising import tokenizer_state

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hf_distill.cache.cache import Cache
    from hf_distill.cache.format import Kept
    from hf_distill.objectives import Objective
    from hf_distill.recipe.recipe import Recipe
    from hf_distill.run.pairing import Pair
    from hf_distill.run.run import Run
    from hf_distill.tasks import Task
    from hf_distill.teachers.cached import CachedTeacher

# Beside what `datasets` keeps, so that HF_HOME and HF_DATASETS_CACHE move it too.
FOLDER = "hf_distill-targets"


def default_root() -> Path:
    """Return where caches lie that a recipe gives no place."""
    from datasets import config

    return Path(config.HF_DATASETS_CACHE) / FOLDER


def reading(recipe: Recipe, pair: Pair) -> dict[str, Any]:
    """Return what decides how the teacher reads an example, by the words of a refusal."""
    tokenizer = pair.teacher_tokenizer or pair.tokenizer
    template = getattr(tokenizer, "chat_template", None)
    return {
        "tokenizer": fingerprint(tokenizer_state(tokenizer) or type(tokenizer).__name__),
        "chat template": None if template is None else fingerprint(template),
        "max_length": pair.max_length,
        "task": fingerprint(entry(recipe.task)),
        **({"tokens left out": fingerprint(pair.left_out)} if pair.left_out else {}),
    }


def planned(own: CachedTeacher, task: Task, objectives: Sequence[Objective], pair: Pair | None) -> Kept:
    """Return what will be kept, as far as that is known before a model is loaded.

    Args:
        own: The recipe's entry.
        task: Likewise.
        objectives: Of all stages.
        pair: The models; None where they cannot be looked at, and no hidden states are known.

    Raises:
        UserError: There are no such layers.
    """
    from hf_distill.cache.format import Kept
    from hf_distill.cache.hidden_states import columns_of
    from hf_distill.rows.inferred import vocabulary

    columns = () if pair is None else columns_of(pair.teacher, own.states(objectives, pair), own.hidden_precision)
    if "LM" not in task.auto_class:
        return Kept(outputs=("logits",), states=columns)
    classes = None if pair is None else vocabulary(pair.student, pair.teacher, pair.tokenizer)
    left_out = () if pair is None or classes is None else tuple(one for one in pair.left_out if one < classes)
    classes = None if classes is None else classes - len(left_out)
    top = own.top if classes is None else min(own.top, classes)
    return Kept(
        top=top,
        tail=own.tail if classes is None or top < classes else 0,
        temperature=own.temperature(objectives),
        precision=own.precision,
        classes=classes or 0,
        left_out=left_out,
        states=columns,
    )


def in_advance(recipe: Recipe, pair: Pair) -> str:
    """Return what will be kept of a cached teacher and what it takes, before anything is loaded or counted."""
    from hf_distill.cache.cache import amount
    from hf_distill.cache.hidden_states import in_words

    own: Any = recipe.teacher
    every = [objective for stage in recipe.plan for objective in stage.objectives]
    kept = planned(own, recipe.task, every, pair)
    words = "answers, whole in float32"
    if kept.is_sparse:
        words = f"{kept.in_words()}, {kept.row_bytes()} bytes a position"
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


def cache_of(run: Run, teacher: PreTrainedModel, own: CachedTeacher) -> Cache:
    """Return the cache that belongs to a run, be it there or not.

    Args:
        run: Its data, objectives and processes.
        teacher: The model.
        own: The recipe's entry.
    """
    from hf_distill.cache.cache import Cache
    from hf_distill.cache.format import Kept

    data = run.prepared.for_teacher or run.prepared
    every = [objective for stage in run.recipe.plan for objective in stage.objectives]
    kept = Kept.of(
        teacher,
        data.layout,
        top=own.top,
        tail=own.tail,
        temperature=own.temperature(every),
        precision=own.precision,
        states=own.states(every, run.pair),
        hidden_precision=own.hidden_precision,
    )
    reads = reading(run.recipe, run.pair)
    if own.repo_id is not None and not own.push:
        with run.args.main_process_first(desc="cache"):
            path = fetch(own.repo_id)
        return Cache(data, teacher, kept, reads, path, say=run.narrator.say, complete=True)
    path = default_root() if own.path is None else Path(own.path).expanduser()
    return Cache(data, teacher, kept, reads, path, own.path is not None, run.narrator.say)


def capture(recipe: Recipe) -> Cache:
    """Do what a run does up to its cache: `hf-distill cache RECIPE.yaml`. The run goes on from there.

    The output directory stays free for any run: nothing is written there but a teacher that is trained there.

    Raises:
        UserError: The recipe, its data or the way it was launched is at fault, or its teacher is not a cached one.
    """
    from transformers.utils.logging import disable_progress_bar

    from hf_distill.run.launch import check_launch
    from hf_distill.run.preparation import open_run
    from hf_distill.teachers.cached import CachedTeacher

    if not isinstance(recipe.teacher, CachedTeacher):
        raise recipe.mistake(
            "teacher", "nothing is kept of this teacher. Write {name: cached, teacher: {...}} around it."
        )
    check_launch()
    disable_progress_bar()  # type: ignore[no-untyped-call]
    run = open_run(recipe, restart=False, for_teacher=True)
    with run.directory.lock:
        run.cache_answers(run.load_teacher())
    assert run.cache is not None
    return run.cache
