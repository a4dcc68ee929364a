"""Text in lines, as it comes."""

from __future__ import annotations

from collections.abc import Callable

from rich.cells import cell_len

# All control characters but these two could move the cursor, or do worse, in whoever's terminal shows a model's words.
KEPT = "\n\t"
_HARMLESS = {code: None for code in [*range(32), 127, *range(128, 160)] if chr(code) not in KEPT}


class Flow:
    """Writes pieces of text in lines of at most `width` columns, broken between words where that is possible.

    The last word is held back until it is whole. `width` None: as it is, in one line until it says otherwise.
    """

    def __init__(self, write: Callable[[str], object], width: int | None) -> None:
        self._write = write
        self._width = width
        self._column = 0
        self._word = ""

    def add(self, text: str) -> None:
        text = text.translate(_HARMLESS)
        if self._width is None:
            self._write(text)
            return
        for letter in text:
            if letter.isspace():
                self._end_word()
                self._add_space(letter)
            else:
                if cell_len(self._word + letter) > self._width:  # a URL, or a script without spaces
                    self._end_word()
                self._word += letter

    def finish(self) -> None:
        self._end_word()

    def _end_word(self) -> None:
        size = cell_len(self._word)
        if not size or self._width is None:
            return
        if self._column and self._column + size > self._width:
            self._write("\n")
            self._column = 0
        self._write(self._word)
        self._column += size
        self._word = ""

    def _add_space(self, letter: str) -> None:
        if letter == "\n":
            self._write("\n")
            self._column = 0
        elif self._width is not None and self._column < self._width:
            self._write(" ")
            self._column += 1
