"""Two engines of two tenants on one pool for a while: no page is ever seen by two, and the pool is whole at the end."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.e2e.conftest import Rig, result_of

POOL_PAGES = 4096


def test_two_engines_write_and_check_thousands_of_pages(
    rig: Callable[[int], Rig], request: pytest.FixtureRequest, record_property: Callable[[str, object], None]
) -> None:
    backend = request.node.callspec.params["rig"]
    sharing = rig(POOL_PAGES)
    seconds = str(request.config.getoption("--seconds"))
    row_pages = str(POOL_PAGES // 40)  # two engines want far more than there is
    engines = [
        sharing.engine(f"tenant-{seed}", "--seconds", seconds, "--row-pages", row_pages, "--seed", str(seed))
        for seed in (1, 2)
    ]
    results = [result_of(engine) for engine in engines]
    for result in results:
        record_property(backend, result)
        print(backend, result)
        assert result["pages_checked"] == result["pages_written"] > 0
        if sharing.world is None:  # a simulated page is a file of its own: its mappings never merge
            # Every run needs one mapping and leaves at most one hole behind it; the rest is Python's own.
            assert result["most_kernel_mappings"] < 2 * result["most_runs"] + 500
    assert sum(result["refused"] for result in results) > 0, "the pool was never short: the test shows too little"
    pages = sharing.vattd.pages()
    assert pages["leased"] == 0
    assert sum(pages.values()) == POOL_PAGES
    assert pages["quarantined"] == 0
    if sharing.world is not None:
        assert sharing.world.refused() == 0
        calls = sharing.world.counters()
        print({name: calls[name].calls for name in sorted(calls) if name.startswith("cuMem") and calls[name].calls})
