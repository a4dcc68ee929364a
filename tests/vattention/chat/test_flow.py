"""Lines of a terminal."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from vattention.chat.flow import Flow

TEXT = st.lists(st.text(st.sampled_from("ab \n界\x1b"), max_size=6), max_size=12)


def flown(pieces: list[str], width: int | None) -> str:
    written: list[str] = []
    flow = Flow(written.append, width)
    for piece in pieces:
        flow.add(piece)
    flow.finish()
    return "".join(written)


@given(pieces=TEXT, width=st.integers(4, 20))
def test_lines_fit_and_words_are_all_there(pieces: list[str], width: int) -> None:
    text = flown(pieces, width)
    assert all(cell_len(line.rstrip(" ")) <= width for line in text.split("\n"))
    harmless = "".join(pieces).replace("\x1b", "")
    assert "".join(text.split()) == "".join(harmless.split())


@given(pieces=TEXT)
def test_without_a_width_text_is_as_it_came_less_what_moves_the_cursor(pieces: list[str]) -> None:
    assert flown(pieces, None) == "".join(pieces).replace("\x1b", "")


def test_a_line_is_broken_between_words_wherever_the_pieces_end() -> None:
    for size in range(1, 12):
        text = "one two three\nfour five"
        pieces = [text[at : at + size] for at in range(0, len(text), size)]
        assert [line.rstrip() for line in flown(pieces, 9).split("\n")] == ["one two", "three", "four five"]


def test_words_are_shown_as_soon_as_they_are_whole() -> None:
    written: list[str] = []
    flow = Flow(written.append, 80)
    flow.add("one tw")
    assert "".join(written) == "one "
