"""A tokenizer's chat template: conversations as texts, and which parts of them the assistant says.

If the template marks what the assistant says (`{% generation %}`), its marks are used; else `unmarked_turns` finds it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from hf_distill.errors import UserError, did_you_mean
from hf_distill.tasks.chat_messages import (
    SILENT,
    ChatText,
    NotLearned,
    check_parts,
    is_open,
    lacks_reasoning,
    spellings,
)
from hf_distill.tasks.conversations import Conversation, Message
from hf_distill.tasks.unmarked_turns import ANSWERS, UnmarkedTurns

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
# Arguments that this package passes to the template; a recipe cannot set them.
_RESERVED = (
    *("messages", "conversation", "tools", "documents", "chat_template", "add_generation_prompt", "tokenize"),
    *("continue_final_message", "return_assistant_tokens_mask", "return_dict", "return_tensors", "padding"),
)


class ChatTemplate:
    """The chat template of a tokenizer.

    Args:
        tokenizer: The tokenizer with the template.
        settings: Extra arguments for the template, the same in every conversation.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, settings: Mapping[str, Any]) -> None:
        self._tokenizer = tokenizer
        self._settings = dict(settings)

    def check(self, key: str = "columns.messages") -> None:
        """Refuse a tokenizer without a template, and settings that its template does not use.

        Args:
            key: Recipe key that names the column of conversations.

        Raises:
            UserError: There is no template, none is called `default`, or a setting is unknown.
        """
        templates = self._tokenizer.chat_template
        if templates is None:
            raise UserError(
                "the tokenizer has no chat template, so how messages become one text is not known. Name the tokenizer "
                "of a chat model (tokenizer: ...), or use the columns prompt and completion, as texts.",
                key=key,
            )
        if isinstance(templates, dict) and "default" not in templates:
            raise UserError(
                f"the tokenizer has the chat templates {', '.join(sorted(templates))}, and none is called default.",
                key=key,
            )
        texts = templates.values() if isinstance(templates, dict) else [templates]
        known = set().union(*map(_variables, texts))
        for name in self._settings:
            if name in _RESERVED or (known and name not in known):
                hint = did_you_mean(name, sorted(known - set(_RESERVED)))
                raise UserError(
                    f"the chat template does not use '{name}'.{hint} Leave it out.",
                    key=f"task.chat_template_kwargs.{name}",
                )

    def prompt(self, conversation: Conversation) -> str:
        """Return the text after which a model writes the next turn: that of all messages, and the header of an answer.

        Raises:
            Exception: Any error that the template raises on roles or orders that it does not know.
        """
        failures: list[Exception] = []
        for spelled in spellings(conversation):
            try:
                return self._with_header(spelled, self._render(spelled, spelled.messages, True))
            # A template is a program and can raise any error.
            except Exception as error:
                failures.append(error)
        raise failures[0]

    def _with_header(self, conversation: Conversation, text: str) -> str:
        """Return a prompt with the header that an answer has, if the template writes none when it is asked for one."""
        listed = isinstance(conversation.messages[-1].get("content"), list)
        content: Any = [{"type": "text", "text": ANSWERS[0]}] if listed else ANSWERS[0]
        try:
            if text != self._render(conversation, conversation.messages, False):
                return text
            messages = [*conversation.messages, {"role": "assistant", "content": content}]
            answered = replace(conversation, messages=messages, learned=[False] * len(conversation.messages) + [True])
            shown = self._texts(answered)[-1]
        except Exception:  # the template refuses a conversation that ends here or is answered so
            return text
        start = shown.spans[-1][0]
        return shown.text[:start] if shown.text[:start].startswith(text.rstrip()) else text

    def texts(self, conversation: Conversation) -> list[ChatText]:
        """Return the examples of a conversation in the order of its turns; usually one.

        Raises:
            NotLearned: The text does not show what the assistant says.
            Exception: Any error that the template raises on roles or orders that it does not know.
        """
        failures: list[Exception] = []
        for spelled in spellings(conversation):
            try:
                return self._texts(spelled)
            # A template is a program and can raise any error.
            except Exception as error:
                failures.append(error)
        raise next((one for one in failures if isinstance(one, NotLearned)), failures[0])

    def _texts(self, conversation: Conversation) -> list[ChatText]:
        if not conversation.turns:
            raise NotLearned(SILENT)
        if self.marks(conversation.tools):
            return [self._marked(conversation)]
        turns = UnmarkedTurns(conversation, self._tokenizer, partial(self._render, conversation))
        return list(reversed(list(turns.examples())))

    def marks(self, tools: list[Message] | None = None) -> bool:
        """Whether the template marks what the assistant says."""
        return _GENERATION.search(self._tokenizer.get_chat_template(None, tools)) is not None

    def _render(self, conversation: Conversation, messages: list[Message], prompt: bool) -> str:
        """Return the text of some messages of a conversation; with `prompt`, the header of an answer follows."""
        text: Any = self._tokenizer.apply_chat_template(
            messages,
            tools=cast("Any", conversation.tools),
            tokenize=False,
            add_generation_prompt=prompt,
            **{**self._settings, **conversation.settings},
        )
        return check_parts(str(text), messages)

    def _marked(self, conversation: Conversation) -> ChatText:
        """Return the example of a conversation, with the parts that the template marks."""
        from transformers.utils.chat_template_utils import render_jinja_template

        tokenizer, tools = self._tokenizer, cast("Any", conversation.tools)
        made: Any = render_jinja_template(
            conversations=[conversation.messages],
            tools=tools,
            chat_template=tokenizer.get_chat_template(None, tools),
            return_assistant_tokens_mask=True,
            **{**tokenizer.special_tokens_map, **self._settings, **conversation.settings},
        )
        (text,), (found,) = made
        check_parts(text, conversation.messages)
        spans = list(_joined(found))
        turns = [place for place, one in enumerate(conversation.messages) if one["role"] == "assistant"]
        if turns != conversation.turns:
            if len(turns) != len(spans):
                raise NotLearned("the marks of the chat template do not say which turn is which")
            spans = [span for span, turn in zip(spans, turns, strict=True) if conversation.learned[turn]]
        said = "".join(text[first:end] for first, end in spans)
        messages = [conversation.messages[turn] for turn in conversation.turns]
        unsaid = max([lacks_reasoning(message, said) for message in messages])
        return ChatText(text, spans, unsaid, is_open(messages[-1], said), marked=True)


def _joined(spans: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield spans; those that touch are joined."""
    last: tuple[int, int] | None = None
    for first, end in spans:
        if last is not None and last[1] == first:
            last = (last[0], end)
            continue
        if last is not None:
            yield last
        last = (first, end)
    if last is not None:
        yield last


def _variables(template: str) -> set[str]:
    """Return the variables that a template uses; empty if it cannot be parsed."""
    from jinja2 import TemplateError, meta
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    marks = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")
    environment = ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"])
    try:
        return set(meta.find_undeclared_variables(environment.parse(marks.sub("", template))))
    except TemplateError:  # a template with tags of its own
        return set()
