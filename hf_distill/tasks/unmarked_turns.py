"""Find what the assistant says in a chat template's text, if the template does not mark it.

A turn begins where the text of the messages before it ends, with the header of the answer
(`add_generation_prompt`). It ends where the text that includes it ends. A template may write a turn differently once
other messages follow (Qwen3 drops the reasoning of earlier turns). Such a turn becomes an example of its own, which
ends with that turn: this is the text that the model sees when it generates the turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import TYPE_CHECKING

from hf_distill.tasks.chat_messages import UNSEEN, ChatText, NotLearned, is_open, lacks_reasoning, with_reasoning
from hf_distill.tasks.conversations import Conversation, Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Two answers that begin differently: two texts that differ in the answer alone are equal up to where it begins.
ANSWERS = ("Apples are red.", "Zebras graze!")


@dataclass(frozen=True)
class UnmarkedTurns:
    """The learned turns of one conversation, in a template without marks.

    Attributes:
        conversation: The conversation, in a form that the template expects.
        tokenizer: The tokenizer with the template.
        render: Returns the text of some messages; if its second argument is true, with the header of an answer.
    """

    conversation: Conversation
    tokenizer: PreTrainedTokenizerBase
    render: Callable[[list[Message], bool], str]

    def examples(self) -> Iterator[ChatText]:
        """Yield the examples, from the last turn to the first. Turns that one text shows are in one example.

        Raises:
            NotLearned: The text does not show what the assistant says.
        """
        later: ChatText | None = None
        for turn in reversed(self.conversation.turns):
            alone = self._turn(turn)
            first, end = alone.spans[0]
            if later is not None:
                for cut in (end, end - len(self._trailer(turn, alone.text))):
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

    def _turn(self, turn: int) -> ChatText:
        """Return the text that ends with a turn, and the turn's place in it."""
        message = self.conversation.messages[turn]
        text = self.render(self.conversation.messages[: turn + 1], False)
        prompt = self._prompt(turn)
        if prompt is None:
            text = self._without_header(turn, text)
        start = self._start(turn, text, prompt)
        unsaid = lacks_reasoning(message, text[start:])
        if unsaid and prompt is not None and (whole := with_reasoning(message, text, prompt)):
            return whole
        return ChatText(text, [(start, len(text))], unsaid, is_open(message, text))

    def _start(self, turn: int, text: str, prompt: str | None) -> int:
        """Return the position in a text at which a turn begins: after the prompt that the model sees."""
        if prompt is not None and text.startswith(prompt) and len(prompt) < len(text):
            return len(prompt)
        # The template writes no header, or another one (such as the beginning of reasoning). Then the turn begins where
        # texts with other answers begin to differ.
        before, message = self.conversation.messages[:turn], self.conversation.messages[turn]
        others = []
        for answer in ANSWERS:
            content = [{"type": "text", "text": answer}] if isinstance(message.get("content"), list) else answer
            others.append(self.render([*before, {"role": "assistant", "content": content}], False))
            if answer not in others[-1]:
                raise NotLearned(UNSEEN)
        start = sum(1 for _ in takewhile(lambda same: len(set(same)) == 1, zip(text, *others, strict=False)))
        base = self._before(turn) if prompt is None else None
        # "[/INST] answer": the space belongs to the answer.
        return len(base) if base is not None and not text[len(base) : start].strip() and len(base) < start else start

    def _prompt(self, turn: int) -> str | None:
        """Return the prompt that the model sees before a turn; None if the template writes no header of an answer."""
        if turn == 0:
            return None
        try:
            prompt = self.render(self.conversation.messages[:turn], True)
        except Exception:  # the template refuses a conversation that ends here
            return None
        return None if prompt == self._before(turn) else prompt

    def _before(self, turn: int) -> str | None:
        """Return the text of the messages before a turn; None if there are none or the template refuses them."""
        try:
            return self.render(self.conversation.messages[:turn], False) if turn else None
        except Exception:  # any error that the template raises
            return None

    def _without_header(self, turn: int, text: str) -> str:
        """Return a text without the header of an answer that some templates write after every last message, unasked.

        The header is the place where the same text continues differently if a user message follows. The text of the
        messages before ends with it too.
        """
        before, messages = self._before(turn), self.conversation.messages[: turn + 1]
        listed = isinstance(messages[-1].get("content"), list)
        content = [{"type": "text", "text": ANSWERS[0]}] if listed else ANSWERS[0]
        try:
            other = self.render([*messages, {"role": "user", "content": content}], False)
        except Exception:  # any error that the template raises
            return text
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(text, other, strict=False)))
        # Headers have the same beginning: "<|start|>user" and "<|start|>assistant", or "### " at the start of a line.
        tokens = {*map(str, self.tokenizer.all_special_tokens), *self.tokenizer.get_added_vocab()}
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

    def _trailer(self, turn: int, text: str) -> str:
        """Return the special token that a template writes after every last message (Phi-3); it is not part of the turn.

        Empty if there is none.
        """
        tokens = {str(token) for token in self.tokenizer.all_special_tokens if text.endswith(str(token))}
        if not tokens:
            return ""
        before = self._before(turn) or ""
        return max((token for token in tokens if before.endswith(token)), key=len, default="")
