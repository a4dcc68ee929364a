"""Claims: which pages the sessions of an earlier vattd say that they hold. Pure.

No handle came over from that vattd, so a claim is a word, and all that can be checked of it is that it fits the others.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from vatt.errors import InvalidRequest
from vattd.page_run import PageRun


@dataclass(frozen=True, slots=True)
class Sorted:
    """A session's claims by what becomes of them: generations by page."""

    own: dict[int, int]
    refused: dict[int, int]
    lost: Mapping[str, list[int]] = field(default_factory=dict)  # pages that others lose by it


class Claims:
    """Who claimed which page.

    Invariant: every page that was ever claimed is in `_holders`, with the session that came first, or None once it gave
    the page back; `_disputes` has those that more than one claims, with all who do and live. So no page is ever two
    sessions', and none that came back is claimed again.
    """

    def __init__(self) -> None:
        self._holders: dict[int, str | None] = {}
        self._disputes: dict[int, set[str]] = {}
        self.disputed_total = 0  # pages that ever were in dispute

    def sort_out(self, session_id: str, generation_of: Mapping[int, int], *, final: bool) -> Sorted:
        """What is claimed by two sessions is neither's; with `final` it stays with who came first."""
        refused = {page_id: generation for page_id, generation in generation_of.items() if page_id in self._holders}
        own = {page_id: generation for page_id, generation in generation_of.items() if page_id not in refused}
        self._holders.update(dict.fromkeys(own, session_id))
        lost: defaultdict[str, list[int]] = defaultdict(list)
        for page_id in refused:
            holder = self._holders[page_id]
            if page_id in self._disputes:
                self._disputes[page_id].add(session_id)
            elif holder is not None and not final:
                self._disputes[page_id] = {holder, session_id}
                self.disputed_total += 1
                lost[holder].append(page_id)
        return Sorted(own, refused, lost)

    @property
    def disputed_pages(self) -> int:
        return len(self._disputes)

    def disputed_by(self, session_id: str) -> int:
        """How many disputed pages the session claims."""
        return sum(session_id in claimants for claimants in self._disputes.values())

    def gave_back(self, page_ids: Iterable[int]) -> None:
        """Nobody holds these any more."""
        if not self._holders:  # as a rule, on the way of every return
            return
        for page_id in page_ids:
            if page_id in self._holders:
                self._holders[page_id] = None

    def session_ended(self, session_id: str) -> list[int]:
        """Returns the disputed pages that nobody claims any more."""
        settled = []
        for page_id, claimants in list(self._disputes.items()):
            claimants.discard(session_id)
            if not claimants:
                del self._disputes[page_id]
                self._holders[page_id] = None
                settled.append(page_id)
        return settled


def parse_claims(runs: Iterable[PageRun], most_pages: int) -> dict[int, int]:
    """Generations by page. Raises InvalidRequest for a page that is named twice, or for more than anybody has."""
    generation_of: dict[int, int] = {}
    named = 0
    for run in runs:
        named += run.extent.page_count
        if named > most_pages:
            raise InvalidRequest(f"more than {most_pages} pages are claimed, and nobody has so many")
        generation_of.update(dict.fromkeys(run.extent.page_ids, run.generation))
    if len(generation_of) < named:
        raise InvalidRequest("a page is claimed twice")
    return generation_of
