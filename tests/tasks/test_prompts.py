"""Prompts that a model completes: which tokens are the prompt, in every form of the data, and what is refused."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from chats import CHATML, DEFAULT_SYSTEM, INSTRUCT, NO_PROMPT, THINKING, TOOLS, says, user
from chats import tokenizer_of as template_of
from prepared import refused

from hf_distill.completions.section import Completions
from hf_distill.models.loading import open_tokenizer
from hf_distill.tasks import Prepared, Setup, TextGeneration

CALL = {"type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}


def tokenizer_of(model: Path) -> Any:
    tokenizer = open_tokenizer(str(model))
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def prepare(
    tokenizer: Any,
    columns: Mapping[str, Sequence[Any]],
    *,
    evaluated: Mapping[str, Sequence[Any]] | None = None,
    max_length: int | None = 64,
    task: Mapping[str, Any] | None = None,
    **completions: Any,
) -> Prepared:
    from datasets import Dataset

    how = Completions(**{"by": "student", "max_new_tokens": 4, **completions})
    splits = {"train": Dataset.from_dict(dict(columns)), "eval": Dataset.from_dict(dict(evaluated or columns))}
    return TextGeneration(**task or {}).prepare(
        splits, Setup(tokenizer=tokenizer, max_length=max_length, completions=how)
    )


mistake = partial(refused, prepare)


def parts(tokenizer: Any, row: Mapping[str, Any]) -> tuple[str, str]:
    """Return the prompt and the data's own completion as text, special tokens shown."""
    cut = row["prompt_length"]
    assert row["labels"] == [-100] * cut + row["input_ids"][cut:]
    assert row["length"] == len(row["input_ids"])
    return tokenizer.decode(row["input_ids"][:cut]), tokenizer.decode(row["input_ids"][cut:])


# ---- Texts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama-lm", "gpt2-lm"])
def test_a_prompt_alone_has_no_end_and_no_label(kind: str, make_model: Any) -> None:
    """With the end of text after it, the student would be asked to go on after the end; with labels, prompts would be
    learned."""
    tokenizer = tokenizer_of(make_model(kind))
    end = tokenizer.eos_token
    texts = ["the plot is", f"dull {end} is it"]  # pad == eos, also inside a prompt
    data = prepare(tokenizer, {"prompt": texts})
    for row, text in zip(data.train, texts, strict=True):
        assert row["prompt_length"] == row["length"] == len(row["input_ids"])
        assert row["input_ids"] == list(tokenizer(text)["input_ids"])
        assert row["input_ids"][-1] != tokenizer.eos_token_id
        assert set(row["labels"]) == {-100}
    assert not data.labelled
    batch = data.collator(list(data.train))
    assert batch["attention_mask"].sum(-1).tolist() == data.train["length"][:]


def test_completions_of_the_data_stand_beside_prompts_without_one(make_model: Any) -> None:
    """A row with its own completion must have the very prompt that a row without one has, or `share` compares two
    different tasks."""
    tokenizer = tokenizer_of(make_model("llama-lm"))
    rows = {"prompt": ["the plot is"] * 2, "completion": [" dull", None]}
    data = prepare(tokenizer, rows)
    own, alone = data.train
    assert parts(tokenizer, own)[1] == f"dull{tokenizer.eos_token}" or "dull" in parts(tokenizer, own)[1]
    assert own["input_ids"][-1] == tokenizer.eos_token_id
    assert own["input_ids"][: own["prompt_length"]] == alone["input_ids"]
    assert data.labelled
    key, line = mistake(tokenizer, rows, share=0.5)
    assert (key, "1 of 2" in line) == ("completions.share", True)
    prepare(tokenizer, {"prompt": ["the plot is"], "completion": [" dull"]}, share=0.5)
    # Splits of two kinds: prompts to train on, and completions to be judged by.
    data = prepare(tokenizer, {"prompt": ["the plot is"]}, evaluated=rows)
    assert [len(row["input_ids"]) > row["prompt_length"] for row in data.eval] == [False, True]


def test_of_plain_text_the_first_tokens_are_the_prompt(make_model: Any, caplog: Any) -> None:
    """A text no longer than that has nothing to complete; with its end as the prompt the student would go on after the
    end."""
    tokenizer = tokenizer_of(make_model("llama-lm"))
    texts = ["the plot is moving and the cast is charming .", "dull"]
    with caplog.at_level(logging.WARNING):
        data = prepare(tokenizer, {"text": texts}, prompt_tokens=3)
    (row,) = data.train
    ids = tokenizer(texts[0])["input_ids"]
    assert row["prompt_length"] == 3
    assert row["input_ids"] == [*ids, tokenizer.eos_token_id]
    assert parts(tokenizer, row)[0] == tokenizer.decode(ids[:3])
    assert "1 of 2 examples of the train split are dropped" in caplog.text
    assert mistake(tokenizer, {"text": texts})[0] == "completions.prompt_tokens"
    blocks = prepare(tokenizer, {"text": texts * 4}, prompt_tokens=3, max_length=8, task={"packing": True}).train
    assert {one["prompt_length"] for one in blocks} == {3}
    assert max(blocks["length"]) == 8


def test_long_and_empty_prompts_are_dropped_and_counted(make_model: Any, caplog: Any) -> None:
    """A prompt that is cut is another question, and one without room for an answer makes inputs longer than the model
    takes."""
    tokenizer = tokenizer_of(make_model("gpt2-lm"))
    long = " ".join(["film"] * 7)
    rows = {"prompt": ["the plot is", long, " ", "", "the plot is a story"]}
    with caplog.at_level(logging.WARNING):
        data = prepare(tokenizer, rows, max_length=10)
    assert [len(row["input_ids"]) <= 6 for row in data.train] == [True, True]
    assert "1 of 5 examples of the train split are dropped: their prompt leaves no room for 4" in caplog.text
    assert "2 of 5 examples of the train split are dropped: their prompt is empty" in caplog.text
    key, line = mistake(tokenizer, {"prompt": [long]}, max_length=8)
    assert (key, "has a prompt to complete" in line) == ("columns.prompt", True)
    assert mistake(tokenizer, rows, max_length=4)[0] == "completions.max_new_tokens"
    # A completion of the data is cut as ever, and its prompt is not.
    own = {"prompt": ["the plot is"], "completion": [f" {long}"]}
    assert prepare(tokenizer, own, max_length=8).train[0]["length"] == 8


def test_token_ids_of_the_data_are_taken_as_they_are(make_model: Any) -> None:
    """Tokenised again, what a model wrote can be other tokens; a completion that was cut would get an end."""
    tokenizer = tokenizer_of(make_model("llama-lm"))
    first, last = tokenizer("the plot")["input_ids"], tokenizer("dull", add_special_tokens=False)["input_ids"]
    rows = {
        "prompt": [tokenizer.decode(first)],
        "completion": ["dull"],
        "prompt_ids": [first],
        "completion_ids": [last],
        "messages": [[user("the plot"), says("dull")]],
    }
    for by in ("data", "student"):
        row = prepare(tokenizer, rows, by=by).train[0]
        assert row["input_ids"] == [*first, *last]
        assert row["labels"] == [-100] * len(first) + last
    strange = {**rows, "prompt_ids": [last]}
    assert "another tokenizer" in mistake(tokenizer, strange, by="data")[1]


def test_prompts_alone_are_refused_where_nobody_completes_them(make_model: Any) -> None:
    """Without a completion there is nothing to learn: the loss would be 0 from the first step on."""
    tokenizer = tokenizer_of(make_model("llama-lm"))
    assert "by: student" in mistake(tokenizer, {"prompt": ["the plot is"]}, by="data")[1]
    tokenizer.chat_template = CHATML
    assert "by: student" in mistake(tokenizer, {"messages": [[user("hello")]]}, by="data")[1]


# ---- Conversations ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "header"),
    [
        (CHATML, "<|im_start|>assistant\n"),
        (NO_PROMPT, "<|im_start|>assistant\n"),
        (DEFAULT_SYSTEM, "<|im_start|>assistant\n"),
        (THINKING, "<|im_start|>assistant\n"),
        (INSTRUCT, "[/INST]"),
    ],
)
def test_a_conversation_is_completed_after_the_header_of_an_answer(template: str, header: str) -> None:
    """Without the header the student writes the next question; with another one than that of the data's own completion,
    the two are prompts of different tasks."""
    tokenizer = template_of(template)
    talk = [user("hello"), says("I am fine."), user("and now?")]
    rows = {"messages": [talk, [*talk, says("Still fine.")], [says("hello")]]}
    data = prepare(tokenizer, rows, max_length=None)
    alone, own = data.train
    assert parts(tokenizer, alone)[0].endswith(header)
    assert "I am fine." in parts(tokenizer, alone)[0]
    assert own["input_ids"][: own["prompt_length"]] == alone["input_ids"]
    assert "Still fine." in parts(tokenizer, own)[1]
    assert parts(tokenizer, own)[1].endswith(("<|im_end|>", "</s>", "<|im_end|>\n"))
    by_prompt = prepare(
        tokenizer, {"prompt": [talk, talk], "completion": [None, [says("Still fine.")]]}, max_length=None
    )
    assert by_prompt.train["input_ids"][:] == data.train["input_ids"][:]
    text = {"prompt": [[user("hello")]]}
    assert parts(tokenizer, prepare(tokenizer, text, max_length=None).train[0])[0].endswith(header)


def test_tools_and_what_they_say_are_part_of_the_prompt() -> None:
    """What a tool says is not written by the assistant: learned, the student would make up what tools say."""
    tokenizer = template_of(TOOLS)
    talk = [user("rain?"), says("", tool_calls=[CALL]), {"role": "tool", "content": "sunny"}]
    tools = [[{"type": "function", "function": {"name": "weather", "parameters": {}}}]] * 2
    rows = {"messages": [talk, [*talk, says("No.")]], "tools": tools}
    alone, own = prepare(tokenizer, rows, max_length=None).train
    prompt = parts(tokenizer, alone)[0]
    assert prompt.startswith("<|im_start|>system\n[")
    assert "<|im_start|>tool\nsunny<|im_end|>\n" in prompt
    assert parts(tokenizer, own) == (prompt, "No.<|im_end|>\n") or parts(tokenizer, own) == (prompt, "No.<|im_end|>")


def test_settings_of_the_template_reach_the_prompt() -> None:
    """A student that is asked to think, beside a teacher that was not, learns two styles at once."""
    tokenizer = template_of(THINKING)
    rows = {"messages": [[user("hello")]]}
    without = prepare(tokenizer, rows, max_length=None, task={"chat_template_kwargs": {"enable_thinking": False}})
    assert parts(tokenizer, without.train[0])[0].endswith("<think>\n\n</think>\n\n")
    by_row = {**rows, "chat_template_kwargs": ['{"enable_thinking": false}']}
    assert prepare(tokenizer, by_row, max_length=None).train["input_ids"][:] == without.train["input_ids"][:]
