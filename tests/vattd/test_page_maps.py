"""However many look at the page map, it is drawn once for each size, and no two are drawn at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from vattd import page_maps
from vattd.ledger import Ledger
from vattd.page_map import PageMap, Patch, draw
from vattd.page_maps import PageMaps
from vattd.stock import Stock


class Drawn:
    """How many cells each map was drawn with, and how many were being drawn at a time."""

    def __init__(self) -> None:
        self.cell_counts: list[int] = []
        self.at_a_time = self.most_at_a_time = 0

    def __call__(self, patches: Sequence[Patch], max_pages: int, cell_count: int) -> PageMap:
        self.cell_counts.append(cell_count)
        self.at_a_time += 1
        self.most_at_a_time = max(self.most_at_a_time, self.at_a_time)
        drawn = draw(patches, max_pages, cell_count)
        self.at_a_time -= 1
        return drawn


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    drawn = Drawn()
    monkeypatch.setattr(page_maps, "draw", drawn)
    return drawn


def maps() -> PageMaps:
    return PageMaps(Ledger(Stock(64, shares_zone=False), page_size_bytes=4096, incarnation=1))


def test_what_is_fresh_is_drawn_once_for_each_size(drawn: Drawn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_maps, "FRESH_FOR_S", 3600.0)

    async def story() -> None:
        shared = maps()
        found = await asyncio.gather(*(shared.draw(cell_count) for cell_count in (8, 16, 8, 16, 8)))
        assert [len(one.cells) for one in found] == [8, 16, 8, 16, 8]

    asyncio.run(story())
    assert sorted(drawn.cell_counts) == [8, 16]
    assert drawn.most_at_a_time == 1


@pytest.mark.parametrize(("share", "times"), [(float("inf"), 3), (1e-9, 1)])
def test_the_longer_a_map_took_to_draw_the_longer_it_is_fresh(
    share: float, times: int, drawn: Drawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_maps, "FRESH_FOR_S", 0.0)
    monkeypatch.setattr(page_maps, "LOOP_SHARE", float("inf"))
    monkeypatch.setattr(page_maps, "THREAD_SHARE", share)

    async def story() -> None:
        shared = maps()
        for _ in range(3):
            await shared.draw(8)

    asyncio.run(story())
    assert drawn.cell_counts == [8] * times


def test_only_so_many_sizes_are_kept(drawn: Drawn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_maps, "FRESH_FOR_S", 3600.0)

    async def story() -> None:
        shared = maps()
        for cell_count in range(1, page_maps.MAX_SIZES + 2):
            await shared.draw(cell_count)
        assert len(shared._drawn) == 1

    asyncio.run(story())
