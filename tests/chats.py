"""Chat templates as they are, a tokenizer that has one, and conversations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

CONTROL = (
    *("<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>", "<|user|>", "<|assistant|>", "<|end|>"),
    *("<think>", "</think>", "[INST]", "[/INST]", "<User>", "<Assistant>", "<|call|>", "<|result|>"),
)


def tokenizer_of(template: Any, texts: Sequence[str] = (), control: Sequence[str] = CONTROL) -> Any:
    """Return a byte-level tokenizer that has words, merges across line ends, and control tokens."""
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(
        ["user\nassistant\n\nhello there. I am fine, thank you.\n\n"] * 3 + list(texts), trainer
    )
    made: Any = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    made.add_special_tokens({"additional_special_tokens": list(control)})
    made.chat_template = template
    return made


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def says(text: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


SYSTEM = {"role": "system", "content": "be kind"}
ONE = [user("hello"), says("I am fine.")]
TWO = [*ONE, user("and now?"), says(" 北京 🙂\n")]
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}
CALLS = [user("rain?"), says("", tool_calls=[CALL]), {"role": "tool", "content": "sunny"}, says("No.")]
THOUGHTS = [
    user("hello"),
    says("I am fine.", reasoning_content="greet"),
    user("and now?"),
    says("Still.", reasoning_content="again"),
]

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As many have it: the same, and no header when it is asked for one.
NO_PROMPT = CHATML.partition("{% if add")[0]
INSTRUCT = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content | trim }}{{ eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}<start_of_turn>"
    "{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
# The end of text after any last message.
TRAILER = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
# Reasoning is shown after the last question alone, and an empty one where there is none.
THINKING = (
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and "
    "loop.index0 > ns.last %}<think>\n{{ m.reasoning_content or '' }}\n</think>\n\n{% endif %}{{ m.content }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
# The header that is asked for begins the reasoning, and what was thought is cut from what was said.
R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}<Assistant>"
    "{{ m.content.split('</think>')[-1] }}{{ eos_token }}{% else %}<User>{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<Assistant><think>\n{% endif %}"
)
TOOLS = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}{% for m in messages %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}{% for c in m.tool_calls or [] %}<|call|>{{ c.function.name }}"
    "{{ c.function.arguments | tojson }}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Arguments of tools as a text; content as a text, or as none.
TEXT_ARGUMENTS = TOOLS.replace("c.function.arguments | tojson", "c.function.name + c.function.arguments")
DATED = "<|im_start|>system\n{{ strftime_now('%d %b %Y') }}<|im_end|>\n" + CHATML
DEFAULT_SYSTEM = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are helpful.<|im_end|>\n{% endif %}" + CHATML
)
# Where the system prompt goes: into the last question.
LAST_SYSTEM = (
    "{{ bos_token }}{% set ns = namespace(last=0) %}{% for m in messages if m.role == 'user' %}"
    "{% set ns.last = m.content %}{% endfor %}{% for m in messages if m.role != 'system' %}{% if m.role == 'user' %}"
    "[INST] {% if m.content == ns.last and messages[0].role == 'system' %}{{ messages[0].content }}\n\n{% endif %}"
    "{{ m.content }}[/INST]{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
