"""A conversation as the text, and the tokens, that a model goes on from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jinja2

from vatt.errors import InvalidRequest

SYSTEM, USER, ASSISTANT = "system", "user", "assistant"
ROLES = (SYSTEM, USER, ASSISTANT)


@dataclass(frozen=True, slots=True)
class Message:
    role: str  # one of ROLES
    content: str

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise InvalidRequest(f"a message's role is {self.role!r}: it may be {', '.join(ROLES)}")
        try:
            self.content.encode()
        except UnicodeEncodeError as error:  # JSON can say it, and no tokenizer can read it
            raise InvalidRequest(f"a message is no valid text: half a character at {error.start}") from error


@dataclass(frozen=True, slots=True)
class Written:
    """Text, and the tokens that stand for it: the model's own, where it wrote a part of it."""

    text: str
    token_ids: tuple[int, ...]

    @property
    def length(self) -> int:
        """In tokens."""
        return len(self.token_ids)


class ChatFormat:
    """Writes conversations as one model expects them: by the tokenizer's chat template where it has one.

    Without a template (phi-2, base models) the format is phi-2's, with a system message as a paragraph before it:

        Instruct: the user's message
        Output: the answer
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.has_template = bool(tokenizer.chat_template)
        # A model without a template does not end a turn with a token: it goes on with the user's next message.
        self.stop: tuple[str, ...] = () if self.has_template else ("\nInstruct:", "\nOutput:")

    def write(self, messages: Sequence[Message], known: Written | None = None) -> Written:
        """The prompt for the next answer.

        `known` is what all messages but the last were written as: it keeps its tokens, and so its place in a cache,
        where the template does not write them otherwise now. Raises InvalidRequest where it refuses the messages.
        """
        if self.has_template:
            text = self._by_template(messages)
        else:
            text = _plainly(messages) if known is None else f"{known.text}\n{_plainly(messages[-1:])}"
        if known is None or not text.startswith(known.text):
            return Written(text, tuple(self._tokens(text, is_beginning=True)))
        rest = self._tokens(text[len(known.text) :], is_beginning=False)
        return Written(text, (*known.token_ids, *rest))

    def _by_template(self, messages: Sequence[Message]) -> str:
        plain = [{"role": message.role, "content": message.content} for message in messages]
        try:
            text: str = self._tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=True)
        except jinja2.TemplateError as error:
            raise InvalidRequest(f"the model's chat template refuses these messages: {error}") from error
        return text

    def _tokens(self, text: str, *, is_beginning: bool) -> list[int]:
        """A template writes its special tokens itself; plain text has the tokenizer's own before it."""
        add_special_tokens = is_beginning and not self.has_template
        token_ids: list[int] = self._tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"]
        return token_ids


def _plainly(messages: Sequence[Message]) -> str:
    parts = {SYSTEM: "{}\n\n", USER: "Instruct: {}\n", ASSISTANT: "Output: {}\n"}
    return "".join(parts[message.role].format(message.content) for message in messages) + "Output:"
