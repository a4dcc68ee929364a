"""PageRefs by the run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from vatt.pages import Extent, extents_of


@dataclass(frozen=True, slots=True)
class PageRun:
    """Consecutive pages under one generation (a run of PageRefs): what a lease grants and a return names."""

    extent: Extent
    generation: int


def runs_of(generation_of: Mapping[int, int]) -> tuple[PageRun, ...]:
    """Generations by page, as few runs as can be."""
    pages_of: defaultdict[int, list[int]] = defaultdict(list)
    for page_id, generation in generation_of.items():
        pages_of[generation].append(page_id)
    return tuple(PageRun(extent, generation) for generation, ids in pages_of.items() for extent in extents_of(ids))
