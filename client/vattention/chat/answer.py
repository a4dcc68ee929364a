"""An answer as its reader sees it: pieces of text, then why it ended."""

from __future__ import annotations

import enum
import queue
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from vattention.chat.prompt import Written


class FinishReason(enum.Enum):
    STOP = "stop"  # the model ended it, or wrote a stop string
    LENGTH = "length"  # max_tokens, or the context is full
    MEMORY = "memory"  # no page for another token, although nobody else of this engine holds any
    CANCELLED = "cancelled"  # by Answer.cancel, or the engine was closed
    FAILED = "failed"  # an error: see Finish.error


@dataclass(frozen=True, slots=True)
class Finish:
    """Why an answer ended."""

    reason: FinishReason
    detail: str = ""  # in words, where the reason does not say it all
    error: Exception | None = None  # of FAILED, and what MEMORY was refused with


@dataclass(frozen=True, slots=True)
class TokenCounts:
    prompt: int = 0
    reused: int = 0  # of the prompt, those that the cache held already
    prefilled: int = 0  # computed before the answer went on: the prompt's rest, and all again after a giving up
    generated: int = 0


@dataclass(frozen=True, slots=True)
class Ending:
    """What the engine leaves when it is done with an answer."""

    finish: Finish
    counts: TokenCounts
    written: Written | None = None  # prompt and answer; None where the tokens do not spell the text


class Answer:
    """Text that a model writes, piece by piece; iterate over it once, in one thread.

    Nothing is lost by a slow reader, and nobody waits for it. Who stops reading should `cancel()`: else the answer is
    generated to its end.
    """

    def __init__(self, cancel: Callable[[Answer], None]) -> None:
        self._cancel = cancel
        self._events: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._pieces: list[str] = []
        self._ending: Ending | None = None

    def __iter__(self) -> Iterator[str]:
        """Raises the error that ended the answer, if its reason is FAILED."""
        while (piece := self.next_piece()) is not None:
            yield piece

    def next_piece(self) -> str | None:
        """Wait for more text; None at the end. Raises as iterating does."""
        piece = self._events.get()
        if piece is None:
            self._events.put(None)  # for whoever asks again
            if self.finish is not None and self.finish.reason is FinishReason.FAILED and self.finish.error is not None:
                raise self.finish.error
        return piece

    def wait(self) -> str:
        """Read to the end; the whole text. Raises as iterating does."""
        for _piece in self:
            pass
        return self.text

    def cancel(self) -> None:
        """End the answer where it is. What is mapped stays for the conversation's next turn. Returns at once;
        idempotent."""
        if self._ending is None:
            self._cancel(self)

    @property
    def text(self) -> str:
        """What there is so far, read or not."""
        return "".join(self._pieces)

    @property
    def finish(self) -> Finish | None:
        """None while it is being written."""
        return self._ending.finish if self._ending is not None else None

    @property
    def ending(self) -> Ending | None:
        return self._ending

    @property
    def counts(self) -> TokenCounts:
        """All zero while it is being written."""
        return self._ending.counts if self._ending is not None else TokenCounts()

    def add(self, piece: str) -> None:
        """For the engine: more text."""
        if piece:
            self._pieces.append(piece)
            self._events.put(piece)

    def end(self, ending: Ending) -> None:
        """For the engine: nothing more comes."""
        self._ending = ending
        self._events.put(None)
