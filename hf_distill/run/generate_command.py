"""The command `hf-distill generate`: let the student or the teacher write a data set, without training anything."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hf_distill import parallel
from hf_distill.completions.filtering import CompletionFilter
from hf_distill.completions.sampling import Completion
from hf_distill.data.example_columns import PROMPT_LENGTH
from hf_distill.errors import UserError
from hf_distill.files.atomic import check_writable, is_left_over, write_atomic
from hf_distill.formatting import counted
from hf_distill.models.fingerprint import model_fingerprint
from hf_distill.models.target_model import ROW
from hf_distill.run.chain import trainings
from hf_distill.run.completing import completions_of, eval_writer, writing_model
from hf_distill.run.preparation import complete, locating_data, open_run, setup_of
from hf_distill.run.requirements import output_directory
from hf_distill.tasks.conversations import read_prompt
from hf_distill.tasks.text_prompts import without_completion
from hf_distill.tasks.text_tokens import COMPLETION_IDS, PROMPT_IDS, WRITTEN_BY
from hf_distill.teachers.given.cache import numbered

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_distill.models.target_model import TargetSource
    from hf_distill.recipe.recipe import Recipe
    from hf_distill.run.run import Run

By = Literal["student", "teacher"]
# Split of a run -> its file, named so that a recipe finds it with the path of the directory alone.
FILES = {"train": "train.jsonl", "eval": "validation.jsonl"}


@dataclass(frozen=True)
class Generated:
    """A data set that was written.

    Attributes:
        path: Its directory.
        text: What is in it, in words.
    """

    path: Path
    text: str


def plan(recipe: Recipe, by: str | None) -> tuple[Recipe, By]:
    """Return the recipe as it is checked and opened to write a data set, and who writes.

    Args:
        recipe: The recipe.
        by: Who writes; by default who does in the recipe.

    Raises:
        UserError: It is not said who writes, or the task has nothing to write.
    """
    by = by or recipe.completions.by
    if not recipe.task.writes:
        raise recipe.mistake("task", f"the models of {recipe.task.name} write no text. Wanted text-generation.")
    if by not in ("student", "teacher"):
        raise recipe.mistake("completions.by", f"found {by}. Say who writes: --by student, or --by teacher.")
    who: By = "student" if by == "student" else "teacher"
    completions = replace(recipe.completions, by=who, share=1.0, reuse=1)
    return replace(recipe, completions=completions, report=replace(recipe.report, baseline=False)), who


def place(recipe: Recipe, by: By, into: str | None) -> Path:
    """Return the directory that is written: `into`, else one beside the output directory."""
    output = output_directory(recipe)
    return output.with_name(f"{output.name}-{by}-completions") if into is None else Path(into).expanduser()


def generate(recipe: Recipe, by: str | None = None, into: str | None = None) -> Generated:
    """Let a model write a completion of each prompt of a recipe's data, and store them as a data set.

    Eval rows keep the completion that the data has; for the others the teacher writes it. The output directory of the
    recipe stays free for any run.

    Args:
        recipe: The recipe.
        by: Who writes the train rows: `student` as it is before training, or `teacher`. Default: as in the recipe.
        into: Directory of the data set. Default: one beside the output directory.

    Raises:
        UserError: There is a mistake in the recipe, its data or the launch, or the directory holds something else.
    """
    from transformers.utils.logging import disable_progress_bar

    from hf_distill.run.launch import check_launch

    check_launch()
    disable_progress_bar()  # type: ignore[no-untyped-call]
    recipe, who = plan(recipe, by)
    path = place(recipe, who, into)
    raw: dict[str, Dataset] = {}
    run = open_run(trainings(recipe)[0].recipe, restart=False, for_teacher=True, read=raw.update)
    parallel.asked_once(lambda: _check_place(path))
    splits = numbered(complete(run.recipe, raw)[0])
    with locating_data(run.recipe):
        prepared = run.recipe.task.prepare(splits, setup_of(run.recipe, run.pair))
    with run.directory.lock:
        teacher = run.load_teacher()
        lines = {"train": list(_train(run, teacher, who, splits["train"], prepared.train))}
        lines["eval"] = list(_eval(run, teacher, splits["eval"], prepared.eval))
    texts = {
        path / file: "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in lines[name])
        for name, file in FILES.items()
    }
    parallel.asked_once(lambda: _store(texts))
    counts = ", ".join(f"{counted(len(rows), 'row')} in {FILES[name]}" for name, rows in lines.items())
    return Generated(path, f"{counts}. Learn from them with data.path={path} data.columns={{}} completions.by=data")


def _check_place(path: Path) -> None:
    """Refuse a directory that holds anything but what this command writes."""
    check_writable(path)
    others = sorted(one.name for one in path.iterdir() if one.name not in FILES.values() and not is_left_over(one.name))
    if others:
        raise UserError(f"{path} holds {others[0]}, which is not of a data set of this command. Choose another --into.")


def _store(texts: Mapping[Path, str]) -> None:
    """Write the files of a data set; none of them if one holds something else."""
    for file, text in texts.items():
        if file.exists() and file.read_bytes() != text.encode():
            raise UserError(
                f"{file} holds other completions (another model, sampling or data). Remove it, or choose another "
                "--into; what was written now is stored, and the same command finds it."
            )
    for file, text in texts.items():
        write_atomic(file, text)


def _train(run: Run, teacher: TargetSource, by: By, raw: Dataset, split: Dataset) -> Iterator[dict[str, Any]]:
    from transformers import set_seed

    own = run.recipe.completions
    with run.recipe.locate(""):
        if by == "teacher":
            model, key = writing_model(run, teacher), teacher.fingerprint()
        else:
            set_seed(run.args.seed)
            model = run.new_student(teacher, run.args.seed)
            key = model_fingerprint(model)
        rows = range(len(split))
        written = completions_of(run, model, key, split, rows, own.per_prompt)
        if by == "teacher":
            kept = CompletionFilter(own)
            written = kept.of_rows([split[row]["input_ids"][: split[row][PROMPT_LENGTH]] for row in rows], written)
            run.narrator.say(kept.in_words("kept"))
    how = {WRITTEN_BY: by, "writer": key, "sampling": json.dumps(asdict(own.sampling), sort_keys=True)}
    for row, found in zip(rows, written, strict=True):
        for one in found:
            yield _record(run, raw, split[row], one, how)


def _eval(run: Run, teacher: TargetSource, raw: Dataset, split: Dataset) -> Iterator[dict[str, Any]]:
    own, missing = run.recipe.completions, without_completion(split)
    written: dict[int, list[Completion]] = {}
    how = {WRITTEN_BY: "data", "writer": "", "sampling": ""}
    by_model = dict(how)
    if missing:
        with run.recipe.locate(""):
            by, model, key = eval_writer(run, teacher)
            found = completions_of(run, model, key, split, missing)
        written = dict(zip(missing, found, strict=True))
        by_model = {WRITTEN_BY: by, "writer": key, "sampling": json.dumps(asdict(own.sampling), sort_keys=True)}
    for row in range(len(split)):
        example = split[row]
        if row in written:
            yield _record(run, raw, example, written[row][0], by_model)
            continue
        ids = tuple(example["input_ids"][example[PROMPT_LENGTH] :])
        yield _record(run, raw, example, Completion(ids, ended=ids[-1:] == (run.fitter.tokenizer.eos_token_id,)), how)


def _record(
    run: Run, raw: Dataset, example: Mapping[str, Any], one: Completion, how: Mapping[str, Any]
) -> dict[str, Any]:
    """Return a row of the data set."""
    tokenizer: Any = run.fitter.tokenizer
    prompt = example["input_ids"][: example[PROMPT_LENGTH]]
    # The token that ends a text is no part of what it says.
    said = tokenizer.decode(one.ids[:-1] if one.ended else one.ids)
    reason = "data" if how[WRITTEN_BY] == "data" else "stop" if one.ended else "length"
    return {
        "prompt": tokenizer.decode(prompt),
        "completion": said,
        **_conversation(run, raw, example, said),
        PROMPT_IDS: prompt,
        COMPLETION_IDS: list(one.ids),
        "finish_reason": reason,
        **how,
    }


def _conversation(run: Run, raw: Dataset, example: Mapping[str, Any], said: str) -> dict[str, Any]:
    """Return the same as messages, with what else the chat template reads; nothing where the prompt is a text."""
    if ROW not in example:  # texts that were packed
        return {}
    row = raw[int(example[ROW])]
    if getattr(run.recipe.task, "examples", None) in (None, "messages"):
        row["messages"] = row.get("messages") or row.get("conversations")
    else:
        row.pop("messages", None)
    if row.get("messages") is None:
        row.pop("messages", None)
        if not isinstance(row.get("prompt"), list):
            return {}
    talk = read_prompt(row, f"row {example[ROW]}")
    before = [one for one, own in zip(talk.messages, talk.learned, strict=True) if not own]
    more = {name: row[name] for name in ("tools", "chat_template_kwargs") if row.get(name) is not None}
    return {"messages": [*before, {"role": "assistant", "content": said}], **more}
