"""Chat templates as they are: where in their texts the assistant speaks, and that nothing else is learned."""

from __future__ import annotations

import importlib.util
import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
from chats import (
    CALL,
    CALLS,
    CHATML,
    DATED,
    DEFAULT_SYSTEM,
    GEMMA,
    INSTRUCT,
    LAST_SYSTEM,
    NO_PROMPT,
    ONE,
    R1,
    SYSTEM,
    TEXT_ARGUMENTS,
    THINKING,
    THOUGHTS,
    TOOLS,
    TRAILER,
    TWO,
    says,
    tokenizer_of,
    user,
)

from hf_distill.errors import UserError
from hf_distill.tasks.chat_messages import NotLearned
from hf_distill.tasks.chat_template import ChatTemplate
from hf_distill.tasks.conversations import read_conversation
from hf_distill.tasks.spanned import spanned

PARTS = (
    "{% for m in messages %}{{ m.role | capitalize }}: {% for part in m.content %}{% if part.type == 'text' %}"
    "{{ part.text }}{% endif %}{% endfor %}<|end|>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)


def learned(template: Any, messages: Any, tools: Any = None, **settings: Any) -> list[list[str]]:
    """Return, for every example of a conversation, what is learned of it: consecutive tokens as one text."""
    tokenizer = tokenizer_of(template)
    conversation = read_conversation({"messages": messages, "tools": tools}, "row 0 of the train split")
    chat = ChatTemplate(tokenizer, settings)
    chat.check()
    texts = chat.texts(conversation)
    found = []
    for one, (ids, taken, _) in zip(texts, spanned(tokenizer, texts), strict=True):
        assert tokenizer(one.text, add_special_tokens=False)["input_ids"] == ids
        runs: list[list[int]] = []
        for place, (token, yes) in enumerate(zip(ids, taken, strict=True)):
            if yes and (place == 0 or not taken[place - 1]):
                runs.append([])
            if yes:
                runs[-1].append(token)
        found.append([tokenizer.decode(run) for run in runs])
    return found


@pytest.mark.parametrize(
    ("template", "messages", "expected"),
    [
        (CHATML, TWO, [["I am fine.<|im_end|>\n", "北京 🙂<|im_end|>\n"]]),
        (CHATML, [SYSTEM, *ONE, user("left over")], [["I am fine.<|im_end|>\n"]]),
        (NO_PROMPT, TWO, [["I am fine.<|im_end|>\n", "北京 🙂<|im_end|>\n"]]),
        (INSTRUCT, TWO, [[" I am fine.</s>", " 北京 🙂</s>"]]),
        (GEMMA, TWO, [["I am fine.<end_of_turn>\n", "北京 🙂<end_of_turn>\n"]]),
        (TRAILER, TWO, [["I am fine.<|end|>\n", " 北京 🙂\n<|end|>\n</s>"]]),
        (DATED, ONE, [["I am fine.<|im_end|>\n"]]),
        (DEFAULT_SYSTEM, TWO, [["I am fine.<|im_end|>\n", "北京 🙂<|im_end|>\n"]]),
        (PARTS, TWO, [[" I am fine.<|end|>\n", "  北京 🙂\n<|end|>\n"]]),
        ({"default": CHATML, "tool_use": TOOLS}, ONE, [["I am fine.<|im_end|>\n"]]),
        # Written differently once the conversation goes on: each turn as it is written when it is said.
        (
            THINKING,
            TWO,
            [["<think>\n\n</think>\n\nI am fine.<|im_end|>\n"], ["<think>\n\n</think>\n\n 北京 🙂\n<|im_end|>\n"]],
        ),
        (
            THINKING,
            THOUGHTS,
            [
                ["<think>\ngreet\n</think>\n\nI am fine.<|im_end|>\n"],
                ["<think>\nagain\n</think>\n\nStill.<|im_end|>\n"],
            ],
        ),
        (LAST_SYSTEM, [SYSTEM, *TWO], [[" I am fine.</s>"], ["  北京 🙂\n</s>"]]),
        # The header is another one than the text has: nothing of it is learned, and no reasoning is lost.
        (R1, TWO, [["I am fine.</s>", " 北京 🙂\n</s>"]]),
        (R1, [user("hello"), says("<think>\ngreet\n</think>\n\nfine")], [["greet\n</think>\n\nfine</s>"]]),
        (R1, [user("hello"), says("greet\n</think>\n\nfine")], [["greet\n</think>\n\nfine</s>"]]),
        # No first question, and two turns in a row.
        (
            CHATML,
            [says("hello"), *ONE, says("really")],
            [["hello<|im_end|>\n", "I am fine.<|im_end|>\n", "really<|im_end|>\n"]],
        ),
    ],
)
def test_what_is_learned_of_a_conversation(template: Any, messages: Any, expected: list[list[str]]) -> None:
    """A header, a question or a date among the labels teaches the student to write them; a lost end, never to stop."""
    assert learned(template, messages) == expected


@pytest.mark.parametrize(
    ("header", "end"),
    [("### {}:\n", "\n<|im_end|>\n"), ("<|im_start|>{}\n", "<|im_end|>\n"), ("<|im_start|>{}\n", "<|im_end|>")],
)
def test_a_header_that_nobody_asked_for_is_not_learned(header: str, end: str) -> None:
    """DeepSeek-Coder's first template ended every text with the header of an answer: a student would learn to write it
    after each of its answers, and so to answer itself."""
    one = f"{header.replace('{}', chr(39) + ' ~ role ~ ' + chr(39))}"
    template = "{% for m in messages %}{% set role = m['role'] %}{{ '" + one + "' ~ m['content'] ~ '" + end + "' }}"
    template = (template + "{% endfor %}{{ '" + header.format("assistant") + "' }}").replace("\n", "\\n")
    made = tokenizer_of(template)
    conversation = read_conversation({"messages": [user("a"), says("b"), user("c"), says("d")]}, "row 0")
    (text,) = ChatTemplate(made, {}).texts(conversation)
    assert [text.text[first:last] for first, last in text.spans] == [f"b{end}", f"d{end}"]


def test_tools_are_read_and_calls_are_learned() -> None:
    """Results of tools come from tools: a student that learns them makes them up. OpenAI writes arguments as a text."""
    tools = [{"type": "function", "function": {"name": "weather"}}]
    call = '<|call|>weather{"city": "Paris"}<|im_end|>\n'
    text = [{**CALL, "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}]
    as_text = [CALLS[0], says(None, tool_calls=text), *CALLS[2:]]
    for messages in (CALLS, as_text):
        assert learned(TOOLS, messages, tools) == [[call, "No.<|im_end|>\n"]]
        assert learned({"default": GEMMA, "tool_use": TOOLS}, messages, tools) == [[call, "No.<|im_end|>\n"]]
        (runs,) = learned(TEXT_ARGUMENTS, messages, tools)
        assert runs == ['<|call|>weatherweather{"city": "Paris"}<|im_end|>\n', "No.<|im_end|>\n"]
    as_text[1] = says(None, tool_calls=json.dumps(text))  # a list in a CSV
    assert learned(TOOLS, as_text, json.dumps(tools)) == [[call, "No.<|im_end|>\n"]]
    for bad in ({"tools": "[{"}, {"chat_template_kwargs": "x"}, {"tools": ["{"]}):
        with pytest.raises(UserError, match="row 0 holds the text"):
            read_conversation({"messages": ONE, **bad}, "row 0")
    # Arrow gives every call the arguments of all others.
    arrow = [{**CALL["function"], "arguments": {"city": "Paris", "day": None}}]
    assert learned(TOOLS, [CALLS[0], says("", tool_calls=[{"function": arrow[0], "type": None}])]) == [[call]]


def test_settings_of_a_template() -> None:
    """`enable_thinking` that is not passed on trains the other mode than the one that will be used."""
    off = learned(THINKING, ONE, enable_thinking=False)
    assert off == [["I am fine.<|im_end|>\n"]]
    with pytest.raises(UserError) as caught:
        learned(THINKING, ONE, enable_thinkin=False)
    assert caught.value.key == "task.chat_template_kwargs.enable_thinkin"
    assert "Did you mean 'enable_thinking'" in str(caught.value)
    row = {"messages": ONE, "chat_template_kwargs": {"enable_thinking": False}}
    chat = ChatTemplate(tokenizer_of(THINKING), {"enable_thinking": True})
    (text,) = chat.texts(read_conversation(row, "row 0"))
    assert text.text[slice(*text.spans[0])] == "I am fine.<|im_end|>\n"


def test_marks_are_used_where_there_are_some() -> None:
    """Whoever has marked a template has decided what is learned."""
    marked = (
        "{% for m in messages %}{{ m.role }}: {% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
        "{% endgeneration %}<|end|>{% else %}{{ m.content }}{% endif %}{% endfor %}"
    )
    assert learned(marked, [*ONE, user("x"), says("really")]) == [[" I am fine.", "really"]]
    assert learned(marked, [user("x"), says("no", train=False), user("y"), says("yes")]) == [["yes"]]
    assert learned(CHATML, [user("x"), says("no", weight=0), user("y"), says("yes")]) == [["yes<|im_end|>\n"]]


@pytest.mark.parametrize(
    ("template", "messages", "why"),
    [
        (CHATML, [user("hello")], "the assistant says nothing"),
        (CHATML, [], "the assistant says nothing"),
        (CHATML.replace("m.content | trim", "''"), ONE, "does not show what the assistant says"),
        (CHATML, CALLS, "does not show the tools that the assistant calls"),
    ],
)
def test_what_cannot_be_told_is_left_out_with_the_reason(template: str, messages: Any, why: str) -> None:
    """A template that drops what was said leaves an end of turn to learn: the student would answer with nothing."""
    with pytest.raises(NotLearned, match=why):
        learned(template, messages)


def test_python_never_spells_content() -> None:
    """Content parts were learned as `[{'type': 'text', ...`."""
    parts = [
        user([{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]),
        says([{"type": "text", "text": "fine"}]),
    ]
    assert learned(CHATML, parts) == learned(CHATML, [user("hello"), says("fine")])


@pytest.mark.parametrize(
    ("messages", "says_"),
    [
        ([user([{"type": "image_url", "image_url": {}}]), says("x")], "message 0 of row 3 .*'image_url'.*text alone"),
        ([{"role": "usr", "content": "x"}], "message 0 of row 3 .*the role 'usr'. Did you mean 'user'"),
        ([{"text": "x"}], "message 0 of row 3 .*has the keys text. Wanted role and content, or from and value"),
        ([user("x"), {"role": "assistant"}], r"message 1 of row 3 .*\(assistant\) has no content"),
        ([user(7)], "the content of message 0 of row 3 .*is 7. Wanted a text"),
        (["hello"], "message 0 of row 3 .*is 'hello'. Wanted an object"),
        ("hello", "row 3 .*holds the text 'hello'. Wanted a list of messages"),
        (7, "row 3 .*holds 7. Wanted a list of messages"),
    ],
)
def test_what_is_no_conversation_is_told_with_its_row(messages: Any, says_: str) -> None:
    """A template prints what it finds: a missing content becomes 'None', a wrong role a turn that is not learned."""
    with pytest.raises(UserError, match=says_) as caught:
        read_conversation({"messages": messages}, "row 3 of the train split")
    assert caught.value.key == "columns.messages"


@pytest.mark.parametrize(
    "messages",
    [
        [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "fine"}],
        '[{"role": "User", "content": "hello"}, {"role": "assistant", "content": "fine"}]',
        {"role": ["user", "assistant"], "content": ["hello", "fine"]},
        [{"role": "user", "content": "hello", "name": None}, {"role": "model", "content": "fine", "tool_calls": None}],
    ],
)
def test_conversations_as_people_have_them(messages: Any) -> None:
    """ShareGPT's keys, JSON in a CSV, columns of lists: refused, or learned as something else."""
    assert read_conversation({"messages": messages}, "row 0").messages == [user("hello"), says("fine")]


def test_prompt_and_completion_as_messages() -> None:
    """TRL's form: of a prompt with earlier answers only the completion is learned."""
    chat = ChatTemplate(tokenizer_of(CHATML), {})
    rows: list[dict[str, Any]] = [
        {"prompt": [*ONE, user("x")], "completion": [says("yes")]},
        {"prompt": [*ONE, user("x")], "completion": "yes"},
    ]
    for row in rows:
        (text,) = chat.texts(read_conversation(row, "row 0"))
        assert [text.text[slice(*span)] for span in text.spans] == ["yes<|im_end|>\n"]
        assert "I am fine." in text.text
    (text,) = chat.texts(read_conversation({"prompt": "x", "completion": [says("yes")]}, "row 0"))
    assert text.text == "<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n"


def prepared(rows: list[dict[str, Any]], template: Any, **task: Any) -> Any:
    from datasets import Dataset

    from hf_distill.tasks import Setup, TextGeneration

    data = Dataset.from_list(rows)
    setup = Setup(tokenizer=tokenizer_of(template), max_length=64)
    return TextGeneration(**task).prepare({"train": data, "eval": data}, setup)


def test_a_split_of_conversations(caplog: Any) -> None:
    """Rows that make several examples, and rows that make none, are counted and said; the rest of a run goes on."""
    rows = [{"conversations": one} for one in (TWO, ONE, [user("alone")])]
    with caplog.at_level(logging.INFO, "hf_distill"):
        made = prepared(rows, THINKING)
    assert len(made.train) == 3
    assert made.eval["length"][:] == sorted(made.train["length"])
    assert set(made.train.column_names) == {"input_ids", "labels", "length"}
    assert "3 conversations of the train split make 4 examples" in caplog.text
    assert "1 of 4 examples of the train split are dropped: the assistant says nothing" in caplog.text
    with pytest.raises(UserError, match=r"no example of the train split has anything to learn.*says nothing"):
        prepared([{"messages": [user("alone")]}], CHATML)
    with pytest.raises(
        UserError, match=r"refuses a conversation: Conversation roles must alternate \(row 1 of the train"
    ):
        prepared([{"messages": ONE}, {"messages": [*ONE, says("x")]}], GEMMA)


def test_a_column_named_for_one_role_is_not_that_of_another(tmp_path: Path) -> None:
    """`columns: {messages: conversations}` was refused where `conversations` is a role of its own."""
    from hf_distill.data import load_splits
    from hf_distill.data.section import Data
    from hf_distill.tasks import TextGeneration

    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({"conversations": ONE}) + "\n")
    for columns in ({}, {"messages": "conversations"}):
        data = Data(path={"train": str(path), "validation": str(path)}, columns=columns)
        (column,) = load_splits(data, TextGeneration.roles)["train"].column_names
        assert column == ("messages" if columns else "conversations")


def test_large_data_is_looked_at() -> None:
    """`--check` reads the first rows of large data; a run that refuses one of them was told to be fine."""
    from datasets import Dataset

    from hf_distill.tasks import Setup, TextGeneration

    data = Dataset.from_list([{"messages": ONE}, {"messages": [{"role": "usr", "content": "x"}]}])
    with pytest.raises(UserError, match="message 0 of row 1 of the train split has the role 'usr'"):
        TextGeneration().look({"train": data, "eval": data}, Setup(tokenizer=tokenizer_of(CHATML), max_length=64))


def test_what_a_template_leaves_out_is_said(caplog: Any) -> None:
    """Reasoning that is not shown is not learned, and a turn without end never ends: neither without a word."""
    prepared([{"messages": [user("x"), says("fine", reasoning_content="greet")]}], CHATML)
    assert "in 1 of 1 examples of the train split the chat template leaves out reasoning" in caplog.text
    prepared([{"messages": ONE}], CHATML.replace("<|im_end|>", ""))
    assert "writes no end after the assistant's turn" in caplog.text


def test_a_tokenizer_that_does_not_tell_where_its_tokens_are() -> None:
    """Without offsets, prefixes of tokens are compared; both ways have to find the same."""
    from transformers import ByT5Tokenizer

    slow: Any = ByT5Tokenizer()
    slow.chat_template = CHATML.replace("<|im_end|>", "</s>")
    assert not slow.is_fast
    texts = ChatTemplate(slow, {}).texts(read_conversation({"messages": TWO}, "row 0"))
    ((ids, taken, merged),) = spanned(slow, texts)
    assert slow.decode([token for token, yes in zip(ids, taken, strict=True) if yes]) == "I am fine.</s>北京 🙂</s>"
    assert not merged


# ---- TRL's templates, where TRL is installed -------------------------------------------------------------------------

_TRL = importlib.util.find_spec("trl")
_FOLDER = (
    Path(_TRL.submodule_search_locations[0], "chat_templates") if _TRL and _TRL.submodule_search_locations else None
)
_STOCK = sorted(path.stem.removesuffix("_training") for path in _FOLDER.glob("*_training.jinja")) if _FOLDER else []


@pytest.mark.skipif(not _STOCK, reason="TRL is not installed")
@pytest.mark.parametrize("name", _STOCK)
def test_the_same_as_trl(name: str) -> None:
    """Where TRL's marked variant writes the same text, we learn the same tokens but those of the header.

    The header is what the template writes when it is asked for an answer (`add_generation_prompt`): TRL marks parts of
    it in some templates.
    """
    assert _FOLDER is not None
    stock, training = (_FOLDER.joinpath(f"{name}{end}.jinja").read_text("utf-8") for end in ("", "_training"))
    control = re.findall(
        r"<\|[\w ]+\|>|<｜[^｜]*｜>|<\w+_of_\w+>|<\|?turn\|?>|</?think>|<\|?channel\|?>", stock + training
    )
    tokenizer = tokenizer_of(stock, [stock], sorted(set(control)))
    compared = 0
    # TRL's masks, which are Transformers', lose bytes of a last character that is several tokens.
    for messages in (ONE, [*ONE, user("and now?"), says(" 北京 🙂.\n")], THOUGHTS[:2], THOUGHTS):
        texts = ChatTemplate(tokenizer, {}).texts(read_conversation({"messages": messages}, "row 0"))
        ours = [(ids, taken) for ids, taken, _ in spanned(tokenizer, texts)]
        parts = name in ("idefics3", "smolvlm", "llava_next")
        given = (
            [{**one, "content": [{"type": "text", "text": one["content"]}]} for one in messages] if parts else messages
        )
        theirs = tokenizer.apply_chat_template(
            given, chat_template=training, return_dict=True, return_assistant_tokens_mask=True
        )
        if len(ours) > 1 or ours[0][0] != theirs["input_ids"]:
            continue  # TRL writes reasoning of earlier turns, or ends, that the template leaves out
        compared += 1
        header = set(tokenizer(_header(tokenizer, given), add_special_tokens=False)["input_ids"])
        header |= set(tokenizer("<think></think>", add_special_tokens=False)["input_ids"])
        for token, mine, trl in zip(*ours[0], theirs["assistant_masks"], strict=True):
            assert mine == bool(trl) or (trl and token in header) or (mine and tokenizer.decode(token) == " ")
    assert compared or name == "glm4moe"


def _header(tokenizer: Any, messages: Any) -> str:
    with_it, without = (
        tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=asked)
        for asked in (True, False)
    )
    return str(with_it)[len(str(without)) :] if str(with_it).startswith(str(without)) else str(with_it)
