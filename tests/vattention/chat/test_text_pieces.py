"""Tokens into text: whatever comes in whatever pieces, joined it is the text."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.vattention.chat.tiny_chat import save_tokenizer
from vattention.chat.text_pieces import TextPieces


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return save_tokenizer(tmp_path_factory.mktemp("tokenizer"), template=None)


def pieces_of(pieces: TextPieces, token_ids: list[int]) -> list[str]:
    """As an engine does it: up to a stop string."""
    shown = []
    for token_id in token_ids:
        shown.append(pieces.add(token_id))
        if pieces.is_stopped:
            break
    return [*shown, pieces.finish()]


@given(token_ids=st.lists(st.integers(0, 257), max_size=40))
def test_the_pieces_joined_are_what_the_tokenizer_decodes(tokenizer: Any, token_ids: list[int]) -> None:
    pieces = TextPieces(tokenizer)
    shown = pieces_of(pieces, token_ids)
    assert "".join(shown) == tokenizer.decode(token_ids, skip_special_tokens=True)
    assert pieces.spelled() == ("".join(shown), len(token_ids))


@given(text=st.text(max_size=20))
def test_a_character_is_shown_when_its_last_byte_has_come_and_not_before(tokenizer: Any, text: str) -> None:
    text = text.replace("\ufffd", "")
    pieces = TextPieces(tokenizer)
    for letter in text:
        *first, last = tokenizer(letter)["input_ids"]
        assert [pieces.add(token_id) for token_id in first] == [""] * len(first)
        assert pieces.add(last) == letter
    assert pieces.finish() == ""


@given(text=st.text("ab\n", max_size=20), stop=st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3))
def test_the_text_ends_before_the_first_stop_string(tokenizer: Any, text: str, stop: list[str]) -> None:
    token_ids = tokenizer(text)["input_ids"]
    pieces = TextPieces(tokenizer, stop)
    shown = "".join(pieces_of(pieces, token_ids))
    assert pieces.is_stopped == any(one in text for one in stop)
    # A stop string may be a part of another: the one whose last letter comes first ends the text.
    ends = [(text.index(one) + len(one), text.index(one)) for one in stop if one in text]
    first_end = min(ends, default=(0, 0))[0]
    expected = text[: min(begin for end, begin in ends if end == first_end)] if ends else text
    assert shown == expected
    assert pieces.spelled() == (expected, len(expected))  # a letter is a token here


def test_space_before_an_answer_is_not_shown_but_spelled(tokenizer: Any) -> None:
    pieces = TextPieces(tokenizer, strip=True)
    assert "".join(pieces_of(pieces, tokenizer(" \n a b")["input_ids"])) == "a b"
    assert pieces.spelled() == (" \n a b", 6)


def test_tokens_that_do_not_end_where_the_text_does_spell_nothing(tokenizer: Any) -> None:
    class Pairs:
        """A tokenizer whose tokens are two letters each."""

        def decode(self, token_ids: list[int], **_options: Any) -> str:
            return "".join("ab" if token_id else "cd" for token_id in token_ids)

    pieces = TextPieces(Pairs(), ["bc"])
    assert "".join(pieces_of(pieces, [0, 1, 0])) == "cda"
    assert pieces.spelled() is None
