"""Zones of an earlier vattd's: how many pages are there in each, and when one ends."""

from __future__ import annotations

from dataclasses import dataclass

from vatt.pages import Extent


@dataclass(slots=True, eq=False)
class _OldZone:
    """Pages that somebody has claimed in it, and all that have memory."""

    known_pages: int = 0
    backed_pages: int = 0
    is_ending: bool = False  # no more will be known


class OldZones:
    """By zone. A page here is never lent again: it goes when it comes back, and the zone with the last of them."""

    def __init__(self) -> None:
        self._zones: dict[int, _OldZone] = {}

    def __contains__(self, zone: int) -> bool:
        return zone in self._zones

    def inherit(self, zone: int, page_count: int) -> None:
        """So many pages, lent or left, are in this zone."""
        self._zones[zone] = _OldZone(backed_pages=page_count)

    def name(self, extent: Extent) -> None:
        """Somebody has claimed these."""
        self._zones.setdefault(extent.zone, _OldZone()).known_pages += extent.page_count

    def destroyed(self, extent: Extent) -> None:
        """Named pages have no memory any more. Those of a false claim may have had none before."""
        old = self._zones[extent.zone]
        old.known_pages -= extent.page_count
        old.backed_pages = max(old.known_pages, old.backed_pages - extent.page_count)

    def backed_in(self, zone: int) -> int:
        """Pages that have memory."""
        return self._zones[zone].backed_pages

    def await_end_of(self, zone: int) -> None:
        """No more pages will be known here, and the rest is gone: the zone ends with those that are."""
        old = self._zones[zone]
        old.backed_pages, old.is_ending = old.known_pages, True

    def forget(self, zone: int) -> None:
        """Nobody has it any more."""
        del self._zones[zone]

    def take_ended(self) -> list[int]:
        """Zones of which nothing is left, each told once."""
        ended = [zone for zone, old in self._zones.items() if old.is_ending and not old.known_pages]
        for zone in ended:
            del self._zones[zone]
        return ended
