"""What a chat template's text shows of a message, and the forms in which templates expect messages."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from hf_distill.tasks.conversations import Conversation, Message

UNSEEN = "the chat template does not show what the assistant says"
SILENT = "the assistant says nothing in them"
_REASONING = ("reasoning_content", "reasoning", "thinking")


@dataclass(frozen=True)
class ChatText:
    """One example: a text, and which parts of it the assistant says.

    Attributes:
        text: The template's text for a conversation, or for its beginning.
        spans: The parts that the assistant says, each as first character and the one after the last. The end-of-turn
            token belongs to its turn.
        unsaid: Whether the template leaves out the reasoning of a turn that is learned.
        unended: Whether the template writes nothing after the last turn, so that no end of turn can be learned.
        marked: Whether the template itself marks the parts.
    """

    text: str
    spans: list[tuple[int, int]]
    unsaid: bool = False
    unended: bool = False
    marked: bool = False


class NotLearned(Exception):
    """A conversation is left out of the data; the message says why."""


def spellings(conversation: Conversation) -> Iterator[Conversation]:
    """Yield a conversation in each form that some templates expect, the usual form first.

    The forms differ in three ways: the arguments of a tool call are an object or JSON text; a message without content
    has no content or an empty one; content is a text or a list of parts.
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


def check_parts(text: str, messages: list[Message]) -> str:
    """Return a text unchanged; refuse one in which a list of content parts was printed as a Python list.

    Raises:
        NotLearned: The template does not know content parts.
    """
    for message in messages:
        content = message.get("content")
        if isinstance(content, list) and repr(content) in text:
            raise NotLearned(UNSEEN)
    return text


def is_open(message: Message, text: str) -> bool:
    """Whether a text ends with the content of its last message, without an end-of-turn token."""
    content = _words(message).strip()
    return bool(content) and not message.get("tool_calls") and text.rstrip().endswith(content)


def _words(message: Message) -> str:
    """Return the content of a message, which is a text or a list of parts."""
    content = message.get("content", "")
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def lacks_reasoning(message: Message, said: str) -> bool:
    """Whether a turn's text lacks the reasoning of its message.

    Raises:
        NotLearned: The text lacks the content or a tool call.
    """
    thought, _, rest = _words(message).rpartition("</think>")
    if rest.strip() not in said:
        raise NotLearned(UNSEEN)
    for call in message.get("tool_calls") or []:
        name = call.get("function", call).get("name", "") if isinstance(call, dict) else ""
        if name not in said:
            raise NotLearned("the chat template does not show the tools that the assistant calls")
    reasons = [thought.rpartition("<think>")[2], *(message.get(key, "") for key in _REASONING)]
    return any(isinstance(one, str) and one.strip() not in said for one in reasons)


def with_reasoning(message: Message, text: str, prompt: str) -> ChatText | None:
    """Return a turn with the reasoning in its content, which the template cuts off (DeepSeek-R1).

    The text is the prompt of the turn, then the whole content, then the end of the turn. None if the content has no
    reasoning, or nothing but reasoning.
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
