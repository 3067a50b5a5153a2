"""Read conversations in the usual formats, check them, and convert them to messages as Transformers takes them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hf_distill.errors import UserError, did_you_mean

# Role in the data -> role in chat templates.
ROLES: Mapping[str, str] = {
    **{name: name for name in ("system", "developer", "user", "assistant", "tool", "function", "ipython")},
    **dict.fromkeys(("human",), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bot", "model"), "assistant"),
    **dict.fromkeys(("observation",), "tool"),
}
# Key in ShareGPT data -> key in chat templates.
_KEYS = {"from": "role", "value": "content"}
# Keys that say whether a turn is learned; they are not passed to the template.
_LEARNED = ("train", "weight")

Message = dict[str, Any]


@dataclass(frozen=True)
class Conversation:
    """One conversation.

    Attributes:
        messages: The messages, with the keys of chat templates; keys without a value are absent.
        learned: For every message, whether it is learned.
        tools: JSON schemas of the tools that the assistant can call; None for none.
        settings: Extra arguments for the template, such as `enable_thinking`.
    """

    messages: list[Message]
    learned: list[bool]
    tools: list[Message] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def turns(self) -> list[int]:
        """Indices of the messages that are learned."""
        return [number for number, learned in enumerate(self.learned) if learned]


def read_conversation(row: Mapping[str, Any], where: str) -> Conversation:
    """Return the conversation of a row: `messages`, or `prompt` and `completion` (only the completion is learned).

    Args:
        row: Role of a column -> cell.
        where: Name of the row in error messages.

    Raises:
        UserError: The row is not a conversation; the message says which message of which row is wrong, and why.
    """
    if "messages" in row:
        key, first = "columns.messages", 0
        given = _list(row["messages"], where, key)
    else:
        key = "columns.completion"
        prompt = _list(row["prompt"], where, "columns.prompt", "user")
        given, first = [*prompt, *_list(row["completion"], where, key, "assistant")], len(prompt)
    messages = list(_messages(given, where, key))
    learned = [
        number >= first
        and message["role"] == "assistant"
        and all(source.get(key) not in (False, 0) for key in _LEARNED)
        for number, (message, source) in enumerate(zip(messages, given, strict=True))
    ]
    last = max((number for number, one in enumerate(learned) if one), default=-1)
    return Conversation(  # messages after the last learned turn are dropped: no learned turn sees them
        messages[: last + 1], learned[: last + 1], _tools(row.get("tools"), where), _settings(row, where)
    )


def read_prompt(row: Mapping[str, Any], where: str) -> Conversation:
    """Return the conversation of a row in which a model is to write the next turn.

    If the last turn is the assistant's, it is the row's own completion of the turns before, and the only one learned.

    Args:
        row: Role of a column -> cell: `messages`, or `prompt` and maybe `completion`.
        where: Name of the row in error messages.

    Raises:
        UserError: The row is not a conversation; the message says which message of which row is wrong, and why.
    """
    key = "columns.messages" if "messages" in row else "columns.prompt"
    if "messages" in row:
        given = _list(row["messages"], where, key)
    else:
        given = _list(row["prompt"], where, key, "user")
        if row.get("completion") is not None:
            given = [*given, *_list(row["completion"], where, "columns.completion", "assistant")]
    messages = list(_messages(given, where, key))
    own = int(bool(messages) and messages[-1]["role"] == "assistant")
    learned = [False] * (len(messages) - own) + [True] * own
    return Conversation(messages, learned, _tools(row.get("tools"), where), _settings(row, where))


def with_system(cell: Any, text: str, where: str, role: str, *, replace: bool) -> list[Message]:
    """Return the messages of a cell with a text as system turn; before what the system turn says that is there.

    Args:
        cell: A list of messages, or of `prompt` a text of the user.
        text: The text; if it is empty, nothing changes.
        where: Name of the row in error messages.
        role: `messages` or `prompt`.
        replace: Put it in place of a system turn that is there.

    Raises:
        UserError: The cell is not a list of messages.
    """
    key = f"columns.{role}"
    given = [dict(one) for one in _list(cell, where, key, "user" if role == "prompt" else None)]
    if not text:
        return given
    rest, own = given, ""
    if given and _role(given[0].get("role", given[0].get("from")), f"message 0 of {where}", key) == "system":
        own = _content(given[0].get("content", given[0].get("value")), f"message 0 of {where}", key)
        rest = given[1:]
    whole = text if replace or not own else f"{text}\n\n{own}"
    return [{"role": "system", "content": whole}, *rest]


def _list(value: Any, where: str, key: str, role: str | None = None) -> list[Message]:
    """Return the messages in a cell; with `role`, a text is one message of that role."""
    if isinstance(value, str):
        if role is not None:
            return [{"role": role, "content": value}]
        value = _parsed(value, where, key)
    if isinstance(value, Mapping):  # a dictionary of lists, as older versions of `datasets` store lists of objects
        lengths = {len(column) for column in value.values() if isinstance(column, Sequence)}
        if len(lengths) == 1:
            value = [dict(zip(value, entries, strict=True)) for entries in zip(*value.values(), strict=True)]
    if not isinstance(value, list):
        raise UserError(
            f"{where} holds {_shown(value)}. Wanted a list of messages: [{{role: user, content: ...}}, ...].", key=key
        )
    for number, message in enumerate(value):
        if not isinstance(message, Mapping):
            raise UserError(
                f"message {number} of {where} is {_shown(message)}. Wanted an object with role and content.", key=key
            )
    return value


def _parsed(text: str, where: str, key: str, wanted: str = "a list of messages") -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise UserError(
            f"{where} holds the text {_shown(text)}. Wanted {wanted}, or the same as JSON.", key=key
        ) from None


def _messages(given: Sequence[Message], where: str, key: str) -> Iterator[Message]:
    for number, source in enumerate(given):
        place = f"message {number} of {where}"
        named = {_KEYS.get(name, name): value for name, value in source.items()} if "role" not in source else source
        message = {name: without_none(value) for name, value in named.items() if value is not None}
        for name in _LEARNED:
            message.pop(name, None)
        if "role" not in message:
            keys = ", ".join(sorted(source))
            raise UserError(f"{place} has the keys {keys}. Wanted role and content, or from and value.", key=key)
        if isinstance(message.get("tool_calls"), str):
            message["tool_calls"] = _parsed(message["tool_calls"], f"tool_calls of {place}", key, "a list of calls")
        role = message["role"] = _role(message["role"], place, key)
        if "content" in message:
            message["content"] = _content(message["content"], place, key)
        elif role != "assistant" or not message.get("tool_calls"):
            raise UserError(f"{place} ({role}) has no content. Drop the row, or fill it.", key=key)
        yield message


def _role(value: Any, place: str, key: str) -> str:
    role = ROLES.get(value.lower()) if isinstance(value, str) else None
    if role is None:
        hint = did_you_mean(str(value), ROLES)
        raise UserError(
            f"{place} has the role {_shown(value)}.{hint} Wanted one of {', '.join(sorted(set(ROLES.values())))}.",
            key=key,
        )
    return role


def _content(value: Any, place: str, key: str) -> str:
    """Return the content as one text; the texts of content parts (as in OpenAI's format) are joined."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise UserError(f"the content of {place} is {_shown(value)}. Wanted a text.", key=key)
    texts = []
    for part in value:
        text = part.get("text") if isinstance(part, Mapping) else part
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, Mapping) else None
            what = f"a part of the type {_shown(kind)}" if kind not in (None, "text") else _shown(part)
            raise UserError(
                f"the content of {place} has {what}. The models of this task read text alone: drop the row.", key=key
            )
        texts.append(text)
    return "".join(texts)


def _tools(value: Any, where: str) -> list[Message] | None:
    key = "columns.tools"
    tools = _parsed(value, where, key, "a list of JSON schemas") if isinstance(value, str) and value.strip() else value
    if not tools:
        return None
    if not isinstance(tools, list):
        raise UserError(f"the tools of {where} are {_shown(tools)}. Wanted a list of JSON schemas.", key=key)
    made = [
        _parsed(tool, f"a tool of {where}", key, "an object") if isinstance(tool, str) else without_none(tool)
        for tool in tools
    ]
    if not all(isinstance(tool, dict) for tool in made):
        raise UserError(f"the tools of {where} are not all objects. Wanted a list of JSON schemas.", key=key)
    return made


def _settings(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    value, key = row.get("chat_template_kwargs"), "columns.chat_template_kwargs"
    value = _parsed(value, where, key, "an object") if isinstance(value, str) and value.strip() else value
    if not value:
        return {}
    if not isinstance(value, Mapping):
        raise UserError(f"{where} holds {_shown(value)}. Wanted an object.", key=key)
    return {name: one for name, one in value.items() if one is not None}


def without_none(value: Any) -> Any:
    """Return nested data without entries that are None; Arrow adds the keys of all other objects to each object.

    >>> without_none({"a": 1, "b": {"c": None}})
    {'a': 1, 'b': {}}
    """
    if isinstance(value, Mapping):
        return {key: without_none(one) for key, one in value.items() if one is not None}
    return [without_none(one) for one in value] if isinstance(value, list) else value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
