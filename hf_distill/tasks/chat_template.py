"""A tokenizer's chat template: conversations as texts, and where in them the assistant speaks.

Where the template marks what the assistant says (`{% generation %}`), its marks are used. Else the template is asked:
a turn begins where the text of the messages before it ends, the header of the answer included
(`add_generation_prompt`), and ends where the text that includes it ends. A template may write a turn differently once
others follow (Qwen3 drops the reasoning of earlier turns). Such a turn becomes an example of its own, which ends with
it: that is what the model sees when it is to say it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import TYPE_CHECKING, Any, cast

from hf_distill.errors import UserError, did_you_mean
from hf_distill.tasks.conversations import Conversation, Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
# Two answers with no beginning in common: up to where texts with them agree, no answer has begun.
_ANSWERS = ("Apples are red.", "Zebras graze!")
_UNSEEN = "the chat template does not show what the assistant says"
_REASONING = ("reasoning_content", "reasoning", "thinking")
# Given by whoever applies the template, never by a recipe.
_OURS = (
    *("messages", "conversation", "tools", "documents", "chat_template", "add_generation_prompt", "tokenize"),
    *("continue_final_message", "return_assistant_tokens_mask", "return_dict", "return_tensors", "padding"),
)


@dataclass(frozen=True)
class ChatText:
    """One example.

    Attributes:
        text: What the template makes of a conversation, or of its beginning.
        spans: Where the assistant speaks: first character and the one after the last. Its end of turn belongs to it.
        unsaid: Whether the template leaves out reasoning of a turn that is learned.
        unended: Whether the template writes nothing after the last turn, no end that could be learned.
        marked: Whether the template itself says where.
    """

    text: str
    spans: list[tuple[int, int]]
    unsaid: bool = False
    unended: bool = False
    marked: bool = False


class NotLearned(Exception):
    """Why a conversation is left out."""


class ChatTemplate:
    """The chat template of a tokenizer.

    Args:
        tokenizer: Has one.
        settings: What the template is told beside the messages, in every conversation.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, settings: Mapping[str, Any]) -> None:
        self._tokenizer = tokenizer
        self._settings = dict(settings)

    def check(self, key: str = "columns.messages") -> None:
        """Refuse a tokenizer without template, and settings that its template does not know.

        Args:
            key: Where a recipe asks for conversations.

        Raises:
            UserError: It is so.
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
            if name in _OURS or (known and name not in known):
                hint = did_you_mean(name, sorted(known - set(_OURS)))
                raise UserError(
                    f"the chat template does not ask for '{name}'.{hint} Leave it out.",
                    key=f"task.chat_template_kwargs.{name}",
                )

    def texts(self, conversation: Conversation) -> list[ChatText]:
        """Return the examples of a conversation, in its order; mostly one.

        Raises:
            NotLearned: What the assistant says cannot be told from the rest.
            Exception: Whatever the template raises on roles or orders that it does not know.
        """
        failures: list[Exception] = []
        for spelled in _spellings(conversation):
            try:
                return self._texts(spelled)
            # A template is a program, and raises what it likes.
            except Exception as error:
                failures.append(error)
        raise next((one for one in failures if isinstance(one, NotLearned)), failures[0])

    def _texts(self, conversation: Conversation) -> list[ChatText]:
        if not conversation.turns:
            raise NotLearned("the assistant says nothing in them")
        if self.marks(conversation.tools):
            return [self._marked(conversation)]
        return list(reversed(list(self._unmarked(conversation))))

    def marks(self, tools: list[Message] | None = None) -> bool:
        """Whether the template says by itself what to learn."""
        return _GENERATION.search(self._tokenizer.get_chat_template(None, tools)) is not None

    def _render(self, conversation: Conversation, messages: list[Message], prompt: bool = False) -> str:
        text: Any = self._tokenizer.apply_chat_template(
            messages,
            tools=cast("Any", conversation.tools),
            tokenize=False,
            add_generation_prompt=prompt,
            **{**self._settings, **conversation.settings},
        )
        return _checked(str(text), messages)

    # ---- With marks --------------------------------------------------------------------------------------------------

    def _marked(self, conversation: Conversation) -> ChatText:
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
        _checked(text, conversation.messages)
        spans = list(_joined(found))
        turns = [place for place, one in enumerate(conversation.messages) if one["role"] == "assistant"]
        if turns != conversation.turns:
            if len(turns) != len(spans):
                raise NotLearned("the marks of the chat template do not say which turn is which")
            spans = [span for span, turn in zip(spans, turns, strict=True) if conversation.learned[turn]]
        said = "".join(text[first:end] for first, end in spans)
        messages = [conversation.messages[turn] for turn in conversation.turns]
        unsaid = max([_missing(message, said) for message in messages])
        return ChatText(text, spans, unsaid, _is_open(messages[-1], said), marked=True)

    # ---- Without -----------------------------------------------------------------------------------------------------

    def _unmarked(self, conversation: Conversation) -> Iterator[ChatText]:
        """Yield the examples from the last turn to the first."""
        later: ChatText | None = None
        for turn in reversed(conversation.turns):
            alone = self._turn(conversation, turn)
            first, end = alone.spans[0]
            if later is not None:
                for cut in (end, end - len(self._trailer(conversation, turn, alone.text))):
                    if later.text.startswith(alone.text[:cut]) and cut <= later.spans[0][0]:
                        spans = [(first, cut), *later.spans]
                        later = replace(later, spans=spans, unsaid=later.unsaid or alone.unsaid)
                        break
                else:
                    yield later
                    later = alone
                continue
            later = alone
        assert later is not None
        yield later

    def _turn(self, conversation: Conversation, turn: int) -> ChatText:
        """Return the text that ends with a turn, and where in it the turn is."""
        message = conversation.messages[turn]
        text = self._render(conversation, conversation.messages[: turn + 1])
        prompt = self._prompt(conversation, turn)
        if prompt is None:
            text = self._without_header(conversation, turn, text)
        start = self._start(conversation, turn, text, prompt)
        unsaid = _missing(message, text[start:])
        if unsaid and prompt is not None and (whole := _with_reasoning(message, text, prompt)):
            return whole
        return ChatText(text, [(start, len(text))], unsaid, _is_open(message, text))

    def _start(self, conversation: Conversation, turn: int, text: str, prompt: str | None) -> int:
        """Return where a turn begins in a text: after what the model sees when it is to speak."""
        if prompt is not None and text.startswith(prompt) and len(prompt) < len(text):
            return len(prompt)
        # The template writes no header when asked, or another one (a beginning of reasoning). Then: as far as the same
        # text with other words agrees.
        before, message = conversation.messages[:turn], conversation.messages[turn]
        others = []
        for answer in _ANSWERS:
            content = [{"type": "text", "text": answer}] if isinstance(message.get("content"), list) else answer
            others.append(self._render(conversation, [*before, {"role": "assistant", "content": content}]))
            if answer not in others[-1]:
                raise NotLearned(_UNSEEN)
        start = sum(1 for _ in takewhile(lambda same: len(set(same)) == 1, zip(text, *others, strict=False)))
        base = self._without(conversation, turn) if prompt is None else None
        # "[/INST] answer": the space comes with the answer.
        return len(base) if base is not None and not text[len(base) : start].strip() and len(base) < start else start

    def _prompt(self, conversation: Conversation, turn: int) -> str | None:
        """Return what the model sees when it is to speak; None for a template that does not write a header then."""
        if turn == 0:
            return None
        try:
            prompt = self._render(conversation, conversation.messages[:turn], prompt=True)
        except Exception:  # of the template: a conversation that ends here is none it knows
            return None
        return None if prompt == self._without(conversation, turn) else prompt

    def _without(self, conversation: Conversation, turn: int) -> str | None:
        """Return the text of the messages before a turn; None where the template knows no such conversation."""
        try:
            return self._render(conversation, conversation.messages[:turn]) if turn else None
        except Exception:  # of the template
            return None

    def _without_header(self, conversation: Conversation, turn: int, text: str) -> str:
        """Return a text without the header of an answer that some templates write after any last message, unasked.

        It is where the same text goes on otherwise once a user speaks, and ends the text of the messages before too.
        """
        before, messages = self._without(conversation, turn), conversation.messages[: turn + 1]
        listed = isinstance(messages[-1].get("content"), list)
        content = [{"type": "text", "text": _ANSWERS[0]}] if listed else _ANSWERS[0]
        try:
            other = self._render(conversation, [*messages, {"role": "user", "content": content}])
        except Exception:  # of the template
            return text
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(text, other, strict=False)))
        # Headers begin alike: "<|start|>user", "<|start|>assistant", or "### " at the beginning of a line.
        tokens = {*map(str, self._tokenizer.all_special_tokens), *self._tokenizer.get_added_vocab()}
        starts = [
            at
            for token in tokens
            if token and (at := text.rfind(token, 0, same + len(token) - 1)) >= 0 and at + len(token) >= same > at
        ]
        header = text[min(starts, default=text.rfind("\n", 0, same) + 1) :]
        words = header
        for token in tokens:
            words = words.replace(token, "")
        unasked = same < len(text) and words.strip() and before and before.endswith(header)
        return text.removesuffix(header) if unasked else text

    def _trailer(self, conversation: Conversation, turn: int, text: str) -> str:
        """Return the special token that a template writes after any last message (Phi-3), which is not of the turn."""
        tokens = {str(token) for token in self._tokenizer.all_special_tokens if text.endswith(str(token))}
        if not tokens:
            return ""
        before = self._without(conversation, turn) or ""
        return max((token for token in tokens if before.endswith(token)), key=len, default="")


def _checked(text: str, messages: list[Message]) -> str:
    """Refuse a text in which a list of parts stands as Python writes it."""
    for message in messages:
        content = message.get("content")
        if isinstance(content, list) and repr(content) in text:
            raise NotLearned(_UNSEEN)
    return text


def _spellings(conversation: Conversation) -> Iterator[Conversation]:
    """Yield a conversation in the ways in which templates expect it, the usual one first.

    Arguments of a tool as an object or as JSON; a message without content, or with an empty one; content as a text, or
    as a list of parts.
    """
    messages = conversation.messages
    calls = any(message.get("tool_calls") for message in messages)
    contents = [messages]
    if any("content" not in message for message in messages):
        contents.append([{"content": "", **message} for message in messages])
    parts = [{**message, "content": [{"type": "text", "text": message.get("content", "")}]} for message in messages]
    for spelled in (*contents, parts):
        for arguments in (_as_object, _as_json) if calls else (None,):
            made = spelled if arguments is None else [_with_arguments(one, arguments) for one in spelled]
            yield replace(conversation, messages=made)


def _with_arguments(message: Message, spell: Any) -> Message:
    if not isinstance(message.get("tool_calls"), list):
        return message
    calls = []
    for call in message["tool_calls"]:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or "arguments" not in function:
            calls.append(call)
            continue
        function = {**function, "arguments": spell(function["arguments"])}
        calls.append({**call, "function": function} if "function" in call else function)
    return {**message, "tool_calls": calls}


def _as_object(arguments: Any) -> Any:
    try:
        made = json.loads(arguments) if isinstance(arguments, str) else arguments
    except ValueError:
        return arguments
    return made if isinstance(made, dict) else arguments


def _as_json(arguments: Any) -> Any:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def _is_open(message: Message, text: str) -> bool:
    """Whether a text ends with what a message says."""
    content = _words(message).strip()
    return bool(content) and not message.get("tool_calls") and text.rstrip().endswith(content)


def _words(message: Message) -> str:
    """Return the content of a message, spelled as a text or as parts."""
    content = message.get("content", "")
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def _missing(message: Message, said: str) -> bool:
    """Whether a turn goes without its reasoning.

    Raises:
        NotLearned: Without its content or its calls.
    """
    thought, _, rest = _words(message).rpartition("</think>")
    if rest.strip() not in said:
        raise NotLearned(_UNSEEN)
    for call in message.get("tool_calls") or []:
        name = call.get("function", call).get("name", "") if isinstance(call, dict) else ""
        if name not in said:
            raise NotLearned("the chat template does not show the tools that the assistant calls")
    reasons = [thought.rpartition("<think>")[2], *(message.get(key, "") for key in _REASONING)]
    return any(isinstance(one, str) and one.strip() not in said for one in reasons)


def _with_reasoning(message: Message, text: str, prompt: str) -> ChatText | None:
    """Return a turn with the reasoning in its content that the template cuts off (DeepSeek-R1).

    The text is what the model sees when it is to speak, what it should write then, and the end of the turn.
    """
    content = _words(message)
    if "</think>" not in content:
        return None
    rest = content.rpartition("</think>")[2].strip()
    end = text[text.rindex(rest) + len(rest) :] if rest else ""
    opening = prompt[prompt.rindex("<think>") :] if prompt.rstrip().endswith("<think>") else ""
    whole = prompt.removesuffix(opening)
    written = content.strip() if content.strip().startswith("<think>") or not opening else opening + content.strip()
    start = len(whole) + (len(opening) if opening and written.startswith(opening) else 0)
    made = whole + written + end
    return ChatText(made, [(start, len(made))]) if rest else None


def _joined(spans: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield spans, those that touch as one."""
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
    """Return what a template asks for; nothing where it cannot be told."""
    from jinja2 import TemplateError, meta
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    marks = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")
    environment = ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"])
    try:
        return set(meta.find_undeclared_variables(environment.parse(marks.sub("", template))))
    except TemplateError:  # it has tags of its own
        return set()
