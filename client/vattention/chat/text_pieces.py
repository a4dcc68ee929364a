"""Tokens into text, as they come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

HALF_A_CHARACTER = "\ufffd"


class TextPieces:
    """Turns an answer's tokens into pieces of text that may be shown at once.

    A token may be a part of a character only, or look otherwise alone than after another, so text is held back until
    it cannot change any more, or cannot be the beginning of a stop string.
    Invariant: the pieces joined are the text of all tokens, up to the first stop string, without space before it if
    `strip` is set. After `is_stopped` nothing more is added.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = (), *, strip: bool = False) -> None:
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._strips = strip
        self._token_ids: list[int] = []
        # Text of tokens up to `_read` is out. The next is decoded from `_start`: the first token may lose its space.
        self._start = self._read = 0
        self._text = ""  # of the tokens up to `_read`: stop string, space before it and all
        self._token_count_at = {0: 0}  # where the text of so many tokens ends
        self._held = ""
        self.is_stopped = False

    def add(self, token_id: int) -> str:
        """The text that is sure now, or nothing."""
        self._token_ids.append(token_id)
        return self._shown(self._decoded(is_last=False))

    def finish(self) -> str:
        """What was held back, at the end of the answer."""
        rest = self._shown(self._decoded(is_last=True))
        held, self._held = self._held, ""
        return rest + held

    def spelled(self) -> tuple[str, int] | None:
        """After finish(): the text with the space before it, and how many of the tokens are exactly that text.

        None where a stop string begins within a token.
        """
        token_count = self._token_count_at.get(len(self._text))
        return None if token_count is None else (self._text, token_count)

    def _decoded(self, *, is_last: bool) -> str:
        before = self._decode(self._token_ids[self._start : self._read])
        now = self._decode(self._token_ids[self._start :])
        if now.endswith(HALF_A_CHARACTER) and not is_last:
            return ""
        self._start, self._read = self._read, len(self._token_ids)
        return now[len(before) :]

    def _decode(self, token_ids: list[int]) -> str:
        text: str = self._tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def _shown(self, new: str) -> str:
        if self.is_stopped:
            return ""
        self._text += new
        self._token_count_at[len(self._text)] = self._read
        if self._strips:
            new = new.lstrip()
            self._strips = not new
        text = self._held + new
        ends = [at for at in map(text.find, self._stop) if at >= 0]
        if ends:
            self.is_stopped, self._held = True, ""
            self._text = self._text[: len(self._text) - len(text) + min(ends)]
            return text[: min(ends)]
        sure = len(text) - max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[sure:]
        return text[:sure]


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` may be the beginning of `stop`."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
