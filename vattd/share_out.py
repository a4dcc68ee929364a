"""Who gives how many of the pages that are missing: a decision about numbers, and nothing else."""

from __future__ import annotations

import enum
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass


class Depth(enum.IntEnum):
    """How much a session should give up; each one includes those before it."""

    IDLE = 1  # what no request uses
    RUNNING = 2  # pages of running requests too


@dataclass(frozen=True, slots=True)
class Holder:
    """A session that holds pages, as far as asking goes."""

    session_id: str
    tenant: str
    weight: int
    spare_pages: int  # what its tenant, with all its sessions, can be asked for: what it has above its min, say
    held_pages: int
    idle_pages: int  # by its word, nothing uses them
    listens: bool  # its stream is up


def share_out(
    missing: int, deepest: Depth, holders: list[Holder], live: Mapping[str, int], asked: Set[str]
) -> dict[str, tuple[int, Depth]]:
    """Who of `asked` gives how many of the missing pages: idle ones first, then, if it may go so deep, others.

    `live` is what sessions were asked for already.
    """
    shares: dict[str, tuple[int, Depth]] = {}
    for depth in (Depth.IDLE, Depth.RUNNING):
        if depth > deepest or missing <= 0:
            break
        wanted = Counter(live)
        wanted.update({session_id: pages for session_id, (pages, _) in shares.items()})
        for session_id, pages in level(missing, holders, wanted, asked, depth).items():
            shares[session_id] = (shares.get(session_id, (0, depth))[0] + pages, depth)
            missing -= pages
    return shares


def level(
    page_count: int, holders: Iterable[Holder], wanted: Mapping[str, int], asked: Set[str], depth: Depth
) -> dict[str, int]:
    """Up to `page_count` pages of the sessions `asked`, so that what tenants can spare, by weight, ends as level as can
    be. `wanted` is what sessions are to give already.
    """
    tenants: dict[str, list[Holder]] = {}
    for holder in holders:
        tenants.setdefault(holder.tenant, []).append(holder)
    rooms = {
        h.session_id: _room(h, wanted, depth) for those in tenants.values() for h in those if h.session_id in asked
    }
    spare, most, weight = {}, {}, {}
    for name, those in tenants.items():
        weight[name] = those[0].weight
        spare[name] = max(0, those[0].spare_pages - sum(wanted.get(h.session_id, 0) for h in those))
        most[name] = min(spare[name], sum(rooms.get(h.session_id, 0) for h in those))
    left = min(page_count, sum(most.values()))
    if left <= 0:
        return {}
    # The level that all are taken down to, found by halving: the lower it is, the more is taken.
    low, high = 0.0, max((spare[name] / weight[name] for name in tenants), default=0.0)
    for _ in range(64):
        middle = (low + high) / 2
        taken = sum(_down_to(middle * weight[name], spare[name], most[name]) for name in tenants)
        low, high = (middle, high) if taken >= left else (low, middle)
    given: dict[str, int] = {}
    for name in tenants:
        share = min(left, _down_to(low * weight[name], spare[name], most[name]))
        left -= share
        those_asked = [h.session_id for h in tenants[name] if h.session_id in asked]
        for session_id in sorted(those_asked, key=lambda session_id: (-rooms[session_id], session_id)):
            pages = min(share, rooms[session_id])
            share -= pages
            if pages:
                given[session_id] = pages
    return given


def _room(holder: Holder, wanted: Mapping[str, int], depth: Depth) -> int:
    most = holder.idle_pages if depth is Depth.IDLE else holder.held_pages
    return max(0, most - wanted.get(holder.session_id, 0))


def _down_to(level_pages: float, spare_pages: int, most_pages: int) -> int:
    return min(most_pages, max(0, spare_pages - math.floor(level_pages)))
