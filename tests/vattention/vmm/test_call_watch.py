"""Who looks at the drivers' calls sees all of them, and only for as long as he looks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.vattention.vmm.rig import KIB, Rig
from vatt.errors import VattError
from vatt.pages import Extent
from vattention.vmm.call_watch import watched


def test_each_call_is_seen_by_its_name_and_answers_as_ever() -> None:
    rig = Rig.open(64 * KIB)
    seen: list[str] = []

    def watch(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        seen.append(name)
        return function

    with watched(watch):
        rig.physical.create(Extent(0, 3))
        address = rig.mapping.reserve(3 * rig.page)
        rig.share(Extent(0, 3))
        rig.mapping.map(address, [Extent(0, 3)])
    assert {"fallocate", "dup", "mmap", "madvise"} <= set(seen)
    before = list(seen)
    assert rig.mapping.unmap(address, 3 * rig.page) == [Extent(0, 3)]
    assert seen == before
    rig.close()


def test_what_a_call_raises_is_what_it_raises_unseen() -> None:
    def watch(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def failing(*args: Any) -> Any:
            raise OSError(12, "no memory", name)

        return failing if name == "fallocate" else function

    rig = Rig.open(64 * KIB)
    with watched(watch), pytest.raises(VattError, match="fallocate"):
        rig.physical.create(Extent(0, 1))
    rig.physical.create(Extent(0, 1))
    rig.close()


def test_one_looks_at_a_time() -> None:
    with watched(lambda name, function: function):
        with pytest.raises(RuntimeError, match="already"), watched(lambda name, function: function):
            pass
    with watched(lambda name, function: function):
        pass
