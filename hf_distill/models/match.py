"""Does a source of targets give what an objective needs, and does the objective mean something on this data?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from hf_distill.errors import UserError
from hf_distill.models.needs import Gives, Needs, TaskFacts

# Which texts of an example a unit compares; what a recipe calls the last of them.
TEXTS = {"row": (2, "two", "text_pair"), "label": (2, "two", "text_pair"), "triple": (3, "three", "negative")}


@dataclass(frozen=True)
class Mistake:
    """Something that is needed and not given.

    Attributes:
        text: The line for the user.
        key: The setting of the objective that would have to change; empty for the objective itself.
    """

    text: str
    key: str = ""


def match(needs: Needs, gives: Gives | None, facts: TaskFacts, key: str = "") -> None:
    """Refuse an objective that needs what it is not given. The run, `--check` and the trainer all ask here.

    Args:
        needs: Of the objective.
        gives: Of the teacher; None where there is none.
        facts: What is learned.
        key: Where the objective stands, `objectives[1]`.

    Raises:
        UserError: The first mistake; `key` is the setting.
    """
    for mistake in mistakes(needs, gives, facts):
        raise UserError(mistake.text, key=".".join(filter(None, (key, mistake.key))))


def mistakes(needs: Needs, gives: Gives | None, facts: TaskFacts) -> Iterator[Mistake]:
    """Yield all that is needed and not given. See `match`."""
    for check in (_task, _vectors, _samples, _rows, _labels, _texts):  # what is known first comes first
        yield from check(needs, facts)
    if not needs.teacher:
        return
    if gives is None:
        yield Mistake(f"'{needs.name}' needs a teacher, and there is none. Pass `teacher=`, or leave it out.")
        return
    of_teacher: tuple[Callable[[Needs, Gives], Iterator[Mistake]], ...] = (_tokens, _model, _states, _classes, _written)
    for ask in of_teacher:
        yield from ask(needs, gives)


# ---- The data --------------------------------------------------------------------------------------------------------


def _task(needs: Needs, facts: TaskFacts) -> Iterator[Mistake]:
    if needs.tasks and facts.task is not None and facts.task not in needs.tasks:
        yield Mistake(f"'{needs.name}' is for {', '.join(needs.tasks)}, but the task is {facts.task}. Leave it out.")
    elif needs.unit == "span" and facts.spans is False:
        yield Mistake(
            f"'{needs.name}' compares tokens of texts as language models go on with them (text-generation), and there "
            "are none here. Leave it out."
        )


def _vectors(needs: Needs, facts: TaskFacts) -> Iterator[Mistake]:
    if not needs.vectors or facts.vectors is not False:
        return
    if needs.vectors_by:
        text = "'embedding' is what models of the task sentence-similarity return, and those of this task do not."
        yield Mistake(f"{text} Use mean.", needs.vectors_by)
        return
    yield Mistake(
        f"'{needs.name}' is for sentence-similarity, whose models return a vector of each text, and those of this task "
        "do not. Leave it out."
    )


def _rows(needs: Needs, facts: TaskFacts) -> Iterator[Mistake]:
    if facts.classes is not False:
        return
    if not needs.values:
        yield Mistake(
            f"'{needs.name}' compares distributions over classes, but this is regression. Use logits_mse for the "
            "teacher's values and labels for the true ones."
        )
    for key, what in needs.for_classes:
        yield Mistake(f"{what}, and this is regression. Remove it.", key)


def _samples(needs: Needs, facts: TaskFacts) -> Iterator[Mistake]:
    if needs.samples and facts.not_drawn:
        yield Mistake(
            f"'{needs.name}' estimates a divergence by the tokens that the student draws, and here "
            f"{facts.not_drawn}; or use reverse_kl."
        )


def _labels(needs: Needs, facts: TaskFacts) -> Iterator[Mistake]:
    if needs.labels and facts.all_written:
        yield Mistake(
            f"'{needs.name}' needs labels, and what the student writes has none: it would learn to repeat itself. "
            "Leave it out, or let some of the rows keep the completion of the data (completions: {share: 0.5})."
        )
        return
    if needs.labels and facts.labelled is False:
        where = f"data: {{columns: {{{facts.label_role}: ...}}}}"
        yield Mistake(
            f"'{needs.name}' needs labels, but the train split has none. Leave it out, since the teacher's targets "
            f"need no labels; or say which column they are: {where}."
        )


def _texts(needs: Needs, facts: TaskFacts) -> Iterator[Mistake]:
    """Refuse what compares texts of an example with each other, where it has fewer or the teacher reads only one."""
    if facts.translated:
        if needs.teacher and (not needs.vectors or needs.unit != "example" or needs.within_batch):
            yield Mistake(
                f"'{needs.name}' does not go with translations, of which the teacher reads the first text only. Use "
                "sentence_embedding."
            )
        return
    wanted, number, role = TEXTS.get(needs.unit, (1, "", ""))
    if facts.texts is not None and facts.texts < wanted:
        yield Mistake(
            f"'{needs.name}' compares {number} texts of an example, and in the train split there is no '{role}'. Say "
            f"which column it is: data: {{columns: {{{role}: ...}}}}. Single texts can be learned by "
            "sentence_embedding and similarity_matrix."
        )


# ---- The teacher -----------------------------------------------------------------------------------------------------


def _tokens(needs: Needs, gives: Gives) -> Iterator[Mistake]:
    if not (needs.by_token and gives.own_tokens):
        return
    if gives.states == ():
        yield Mistake(
            f"'{needs.name}' compares what is inside the models token by token, and {gives.whose}, which reads tokens "
            "of its own, gives logits only. Leave it out, or compare logits ({name: kl})."
        )
    else:
        yield Mistake(
            f"'{needs.name}' compares the models token by token, and here each of them reads tokens of its own: "
            "another tokenizer, or another prompt before the text. Leave it out, choose a student of the teacher's "
            "family, or make the prompts of both the same (config_sentence_transformers.json)."
        )


def _model(needs: Needs, gives: Gives) -> Iterator[Mistake]:
    """Refuse what a source without a model cannot give."""
    what = ""
    if needs.derivatives and not gives.derivatives:
        what = "derivatives of its logits"
    elif needs.attentions and not gives.attentions:
        what = "its maps of attention"
    elif needs.inside and not gives.model:
        what = "what goes on within its layers"
    if not what:
        return
    has = [text for text, there in (("logits", gives.classes), ("hidden states", gives.states != ())) if there]
    instead = "hidden states ({name: hidden})" if len(has) == 2 else "logits ({name: kl})"
    yield Mistake(
        f"'{needs.name}' looks into the teacher ({what}), and {gives.whose} gives {' and '.join(has) or 'nothing'}, no "
        f"more. Leave it out, compare {instead}, or take the teacher itself."
    )


def _states(needs: Needs, gives: Gives) -> Iterator[Mistake]:
    # Without configurations it is not known which ones.
    lacking = gives.lacking(needs.states or ())
    if not lacking:
        return
    there = ", ".join(map(str, gives.states or ())) or "none"
    yield Mistake(
        f"'{needs.name}' compares hidden states of layers of the teacher that {gives.whose} does not give: "
        f"{', '.join(map(str, lacking))} (there: {there}). {gives.more_states}"
    )


def _classes(needs: Needs, gives: Gives) -> Iterator[Mistake]:
    if needs.classes is None:
        if needs.written:
            yield from _temperature(needs, gives)
        return
    if gives.classes is None:
        only, instead = "none", "Leave it out."
        if gives.written:
            only = "one number a token"
            instead = "Use reverse_kl_sampled on texts that the student writes, or let the teacher give more."
        yield Mistake(f"'{needs.name}' compares logits, and {gives.whose} gives {only}. {instead}")
        return
    if needs.classes == "all" and gives.classes != "all" and not (needs.own_vocabulary and gives.model):
        yield Mistake(
            f"'{needs.name}' does not work with {gives.whose}, of which only the likeliest tokens are known: "
            f"{needs.why_all}. Leave it out, or take the teacher itself."
        )
        return
    if needs.classes == "top" and gives.classes == "drawn":
        yield Mistake(
            f"'{needs.name}' does not work with tokens that were drawn from the tail: its mean over the draws is "
            "another loss. Wanted kl or soft_cross_entropy, or a cached teacher with tail: 0."
        )
    if needs.likeliest is not None and gives.top is not None and needs.likeliest[1] > gives.top:
        setting, wanted = needs.likeliest
        yield Mistake(
            f"'{needs.name}' compares the teacher's {wanted} likeliest classes, and {gives.whose} gives {gives.top}. "
            f"Set {setting} to {gives.top} at most, or store more (top of a cached teacher).",
            setting,
        )
    if needs.exact_logits and not gives.exact_logits:
        yield Mistake(
            f"'{needs.name}' compares logits, and {gives.whose} gives probabilities: logits up to a constant. "
            "Use kl, or a teacher that gives logits (of one given as data: columns: {logits: ...})."
        )
    yield from _temperature(needs, gives)


def _written(needs: Needs, gives: Gives) -> Iterator[Mistake]:
    rows = needs.rows and gives.classes == "all"
    if needs.written and not (gives.model or gives.written or rows):
        yield Mistake(
            f"'{needs.name}' compares the probabilities that both models give the tokens of the text, and "
            f"{gives.whose} does not give these of every token. Leave it out, or take the teacher itself."
        )


def _temperature(needs: Needs, gives: Gives) -> Iterator[Mistake]:
    if gives.temperature is None or set(needs.temperatures) <= {gives.temperature}:
        return
    what = "probabilities" if gives.classes == "all" else "likeliest tokens"
    why = f" ({gives.why_temperature})" if gives.why_temperature else ""
    start = f"{gives.whose} gives {what} at temperature {gives.temperature:g}{why}"
    if len(needs.temperatures) > 1:
        yield Mistake(f"{start}, and this one changes during training. Wanted: a number.", "temperature")
        return
    yield Mistake(
        f"{needs.temperatures[0]:g} here, and {start}: they cannot be softened any more. Use one temperature for all.",
        "temperature",
    )
