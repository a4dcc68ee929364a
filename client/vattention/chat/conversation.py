"""A conversation: its messages, and the tokens that are mapped for it between turns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from vatt.errors import Closed, InvalidRequest
from vattention.chat.answer import Answer, FinishReason
from vattention.chat.prefix import Prefix
from vattention.chat.prompt import ASSISTANT, SYSTEM, USER, Message, Written
from vattention.chat.sampling import Sampling

GREEDY = Sampling()


class Answerer(Protocol):
    """What a conversation needs of the engine."""

    def answer_in(
        self, prefix: Prefix, messages: Sequence[Message], known: Written | None, sampling: Sampling
    ) -> Answer: ...

    def forget(self, prefix: Prefix) -> None: ...


class Conversation:
    """Messages in turn; `say` adds the next two. One thread uses it, several conversations go on at a time.

    A turn computes only what is new, as long as the conversation's slot was not given up for others meanwhile; then it
    computes all of it again. The answer is the same.
    """

    def __init__(self, answerer: Answerer, prefix: Prefix, system: str | None = None) -> None:
        self._answerer = answerer
        self._prefix = prefix
        self._messages = [Message(SYSTEM, system)] if system else []
        self._said: Message | None = None
        self._answer: Answer | None = None
        self._known: Written | None = None
        self._is_closed = False

    @property
    def messages(self) -> tuple[Message, ...]:
        """With the answers that have ended, whole or not. A question without any answer is not in it."""
        self._settle()
        return tuple(self._messages)

    @property
    def cached_tokens(self) -> int:
        """Tokens of it that are mapped now."""
        return self._prefix.length

    def say(self, text: str, sampling: Sampling = GREEDY) -> Answer:
        """Have the model answer. After an error, or a cancelled answer, the conversation goes on as any other time.

        Raises InvalidRequest while another answer is being written, ContextFull where no token would fit, TooBusy where
        too many wait, Draining or SessionEvicted where an operator wants no new requests, Closed after close().
        """
        if self._is_closed:
            raise Closed("the conversation is closed: begin a new one")
        self._settle()
        if self._answer is not None:
            raise InvalidRequest("an answer is being written: read it to its end, or cancel() it and read on")
        said = Message(USER, text)
        self._answer = self._answerer.answer_in(self._prefix, [*self._messages, said], self._known, sampling)
        self._said = said
        return self._answer

    def close(self) -> None:
        """Give its memory back. The messages stay readable. Idempotent."""
        self._is_closed = True
        if self._answer is not None:
            self._answer.cancel()
        self._answerer.forget(self._prefix)

    def _settle(self) -> None:
        """Note the turn that has ended, if one has."""
        answer, said = self._answer, self._said
        if answer is None or said is None or answer.ending is None:
            return
        self._answer = self._said = None
        has_answered = answer.text or answer.ending.finish.reason in (FinishReason.STOP, FinishReason.LENGTH)
        if has_answered:
            self._messages += [said, Message(ASSISTANT, answer.text)]
            self._known = answer.ending.written
