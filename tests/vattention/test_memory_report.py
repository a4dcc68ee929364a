"""What paging saves, in figures that agree with each other."""

from __future__ import annotations

import math
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vatt.usage import Usage
from vattention import MemoryReport

MIB = 1 << 20
PAGE = 2 * MIB
SIZES = st.integers(0, 1 << 48)


@st.composite
def usages(draw: st.DrawFn) -> Usage:
    mapped_pages = draw(st.integers(0, 1 << 20))
    return Usage(mapped_pages, draw(st.integers(0, mapped_pages * PAGE)), draw(SIZES), draw(SIZES), draw(SIZES))


def test_the_figures_of_a_half_filled_cache() -> None:
    usage = Usage(
        mapped_pages=10,
        token_bytes=15 * MIB,
        static_reservation_bytes=80 * MIB,
        paged16_bytes=16 * MIB,
        paged256_bytes=25 * MIB,
    )
    assert MemoryReport.of(usage, PAGE, "static reservation of 4 slots x 128 tokens") == MemoryReport(
        baseline_memory_mb=80.0,
        optimized_memory_mb=20.0,
        memory_saved_mb=60.0,
        memory_savings_percent=75.0,
        utilization=0.75,
        paged16_memory_mb=16.0,
        paged256_memory_mb=25.0,
        saved_vs_paged16_percent=-25.0,
        saved_vs_paged256_percent=20.0,
        baseline="static reservation of 4 slots x 128 tokens",
    )


@given(usages())
def test_every_figure_is_finite_and_agrees_with_the_others(usage: Usage) -> None:
    report = MemoryReport.of(usage, PAGE, "any")
    assert all(math.isfinite(figure) for figure in asdict(report).values() if isinstance(figure, float))
    assert 0 <= report.utilization <= 1
    assert report.memory_saved_mb == pytest.approx(report.baseline_memory_mb - report.optimized_memory_mb)
    for percent, baseline_mb in (
        (report.memory_savings_percent, report.baseline_memory_mb),
        (report.saved_vs_paged16_percent, report.paged16_memory_mb),
        (report.saved_vs_paged256_percent, report.paged256_memory_mb),
    ):
        assert percent <= 100
        if baseline_mb:
            assert baseline_mb * (1 - percent / 100) == pytest.approx(report.optimized_memory_mb, rel=1e-6, abs=1e-6)
            assert (percent < 0) == (report.optimized_memory_mb > baseline_mb)


def test_where_nothing_is_mapped_the_whole_baseline_is_saved_and_nothing_utilized() -> None:
    report = MemoryReport.of(Usage(static_reservation_bytes=80 * MIB), PAGE, "any")
    assert (report.memory_savings_percent, report.utilization) == (100.0, 0.0)


def test_against_a_baseline_that_takes_nothing_no_percentage_is_saved() -> None:
    report = MemoryReport.of(Usage(mapped_pages=1), PAGE, "any")
    assert report.memory_saved_mb == -2.0
    assert report.memory_savings_percent == report.saved_vs_paged16_percent == report.saved_vs_paged256_percent == 0.0


@pytest.mark.parametrize(("usage", "page_size_bytes"), [(Usage(1, PAGE + 1), PAGE), (Usage(), 0)])
def test_tokens_that_fill_more_than_is_mapped_are_refused(usage: Usage, page_size_bytes: int) -> None:
    with pytest.raises(ValueError, match="cannot fill more"):
        MemoryReport.of(usage, page_size_bytes, "any")
