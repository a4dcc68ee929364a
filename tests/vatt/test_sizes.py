"""Sizes in and out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vatt.errors import InvalidRequest
from vatt.sizes import format_size, parse_part, parse_size, parse_size_or_percent


@pytest.mark.parametrize("text", ["8GiB", "8G", "8gb", "8 GiB", " 8g ", "8192MiB", "8589934592", "8.0GiB"])
def test_every_way_people_write_eight_gibibytes(text: str) -> None:
    assert parse_size(text) == 8 << 30


@pytest.mark.parametrize("text", ["", "GiB", "-1", "8X", "8GiBB", "1e9", "0x10", "8%", "8,5G", "9" * 19])
def test_nonsense_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(InvalidRequest, match="8GiB"):
        parse_size(text)


def test_a_percentage_is_of_the_whole() -> None:
    assert parse_size_or_percent("25%", 4096) == 1024
    assert parse_size_or_percent("1KiB", 4096) == 1024


@pytest.mark.parametrize("text", ["101%", "%", "-5%", "5%%"])
def test_a_wrong_percentage_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="%"):
        parse_size_or_percent(text, 4096)


def test_a_part_of_a_pool_is_in_whole_pages() -> None:
    assert parse_part("50%", 65 * 4096, 4096) == 32 * 4096
    assert parse_part("0.001%", 65 * 4096, 4096) == 4096, "at least one"
    assert parse_part("0.0%", 65 * 4096, 4096) == 0
    assert parse_part("5KiB", 65 * 4096, 4096) == 5120, "a size is as it was said"
    assert parse_part("0", 65 * 4096, 4096) == 0


def test_a_forgotten_unit_is_not_taken_for_bytes() -> None:
    with pytest.raises(InvalidRequest, match=r"'8' is 8 bytes, and a page has 4\.00 KiB: write for example 8GiB"):
        parse_part("8", 1 << 30, 4096)
    assert parse_part("8B", 1 << 30, 4096) == 8, "so somebody means it"
    assert parse_part("8192", 1 << 30, 4096) == 8192


@given(st.integers(0, 1 << 60))
def test_a_formatted_size_reads_back_within_one_percent(size_bytes: int) -> None:
    assert parse_size(format_size(size_bytes)) == pytest.approx(size_bytes, rel=0.01)
