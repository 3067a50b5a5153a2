"""Render prompts: Jinja templates over the columns of the data, as text or as the messages of a chat."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from hf_distill.errors import UserError, did_you_mean, first_line

if TYPE_CHECKING:
    from jinja2 import Environment
    from transformers import PreTrainedTokenizerBase

KEY = "prompt"
# Names in a template that are not columns: the solved examples, and (for several labels) the label that is asked for.
EXAMPLES, LABEL, ANSWER = "examples", "label", "answer"
ROLES = ("system", "user", "assistant")

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Prompt:
    """A prompt for one row.

    Attributes:
        given: The template; or `{role, content}` messages, whose contents are templates.
    """

    given: str | Sequence[Mapping[str, str]]

    def check(self, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
        """Refuse a template that is not Jinja or names no column, and messages without a chat template.

        Raises:
            UserError: The prompt cannot be rendered.
        """
        self.check_syntax()
        for at, one in enumerate(() if isinstance(self.given, str) else self.given):
            if set(one) != {"role", "content"} or one["role"] not in ROLES:
                raise UserError(
                    f"wanted messages {{role: {', '.join(ROLES)}, content: TEMPLATE}}; found {dict(one)}.",
                    key=f"{KEY}[{at}]",
                )
        if not self.columns:
            raise UserError("it names no column of the data, so it is the same for every row: {{ text }}.", key=KEY)
        if tokenizer is not None and not isinstance(self.given, str) and not getattr(tokenizer, "chat_template", None):
            raise UserError(
                "its tokenizer has no chat template, so it cannot read messages. Write the prompt as one text.", key=KEY
            )

    def check_syntax(self) -> None:
        """Refuse a template that is not Jinja.

        Raises:
            UserError: It is not.
        """
        from jinja2 import TemplateError

        for place, text in self._contents():
            try:
                self._environment.from_string(text)
            except TemplateError as error:
                line = getattr(error, "lineno", None)
                raise UserError(
                    f"not a Jinja template: {first_line(error)}{f' (line {line} of it)' if line else ''}.",
                    key=place,
                ) from error

    def _contents(self) -> Iterator[tuple[str, str]]:
        if isinstance(self.given, str):
            yield KEY, self.given
            return
        for at, one in enumerate(self.given):
            yield f"{KEY}[{at}].content", one.get("content", "")

    @cached_property
    def _environment(self) -> Environment:
        from jinja2 import StrictUndefined
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        return ImmutableSandboxedEnvironment(undefined=StrictUndefined)

    @cached_property
    def names(self) -> frozenset[str]:
        """Names that the template takes from outside; empty where it is not Jinja."""
        from jinja2 import TemplateError, meta

        try:
            trees = [self._environment.parse(text) for _, text in self._contents()]
        except TemplateError:
            return frozenset()
        return frozenset().union(*(meta.find_undeclared_variables(tree) for tree in trees))

    @property
    def columns(self) -> tuple[str, ...]:
        """Names that have to be columns of the data, sorted."""
        return tuple(sorted(self.names - {EXAMPLES, LABEL}))

    def check_columns(self, known: Iterable[str], split: str) -> None:
        """Refuse a name that is not a column of a split.

        Raises:
            UserError: A column is missing.
        """
        there = sorted(known)
        if missing := [name for name in self.columns if name not in there]:
            hint = did_you_mean(missing[0], there)
            there_are = "" if hint.startswith(" Known") else f" Columns: {', '.join(there)}."
            raise UserError(
                f"the prompt names '{missing[0]}', which is not a column of the {split} split."
                f"{hint.replace(' Known', ' Columns')}{there_are}",
                key=KEY,
            )

    def render(
        self, values: Values, examples: Sequence[Values] = (), tokenizer: PreTrainedTokenizerBase | None = None
    ) -> str:
        """Return the text that the model continues.

        Args:
            values: Name -> value of each column that the prompt names.
            examples: Solved examples: the same, with the text of the answer under `answer`. Where the template does not
                place them itself (`examples`), each is rendered as the prompt with its answer and comes before.
            tokenizer: Has the chat template; not needed for a prompt that is one text.

        Raises:
            UserError: The template fails on these values.
        """
        from jinja2 import TemplateError

        placed = {**values, EXAMPLES: list(examples)}
        before = () if EXAMPLES in self.names else examples
        try:
            if isinstance(self.given, str):
                parts = [self._text(self.given, {**one, EXAMPLES: []}) + str(one[ANSWER]) for one in before]
                return "\n\n".join([*parts, self._text(self.given, placed)])
            assert tokenizer is not None
            return self._chat(before, placed, tokenizer)
        # A template is a program: it may divide by a column of texts, and a chat template may refuse an order of roles.
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
            raise UserError(f"it cannot be rendered: {first_line(error)}.", key=KEY) from error

    def _text(self, template: str, values: Values) -> str:
        return self._environment.from_string(template).render(values)

    def _chat(self, before: Sequence[Values], values: Values, tokenizer: PreTrainedTokenizerBase) -> str:
        assert not isinstance(self.given, str)
        first = [one for one in self.given if one["role"] == "system"]
        rest = [one for one in self.given if one["role"] != "system"]

        def said(messages: Sequence[Mapping[str, str]], of: Values) -> list[dict[str, str]]:
            return [{"role": one["role"], "content": self._text(one["content"], of)} for one in messages]

        messages = said(first, values)
        for one in before:
            messages += [*said(rest, {**one, EXAMPLES: []}), {"role": "assistant", "content": str(one[ANSWER])}]
        messages += said(rest, values)
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
