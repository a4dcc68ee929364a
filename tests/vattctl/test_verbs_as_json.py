"""What verbs did, for programs: numbers in bytes, and the names of the proto."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.daemon import Vattd
from tests.raw_engine import RawEngine
from tests.vattctl.command import done, engine_process, vattctl

MIB = 1 << 20


@pytest.fixture(scope="module")
def vattd() -> Iterator[Vattd]:
    with Vattd("--pool-max", "64MiB") as vattd:
        yield vattd


def said(vattd: Vattd, *arguments: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(done(vattd, *arguments, "-o", "json"))
    assert value.pop("device") == "host"
    return value


def test_reserve_and_unreserve_say_what_the_tenant_has_then(vattd: Vattd) -> None:
    tenant = said(vattd, "reserve", "chat", "--min", "8MiB", "--max", "50%", "--hard")["tenant"]
    assert tenant["name"] == "chat"
    assert tenant["guarantee"]["min_bytes"] == 8 * MIB
    assert tenant["guarantee"]["max_bytes"] == 32 * MIB
    assert tenant["guarantee"]["min_mode"] == "MIN_MODE_HARD"
    assert tenant["source"] == "command"
    tenant = said(vattd, "unreserve", "chat")["tenant"]
    assert (tenant["name"], tenant["source"]) == ("chat", "")


def test_evict_says_what_became_of_the_session(vattd: Vattd) -> None:
    with RawEngine(vattd.sockets, "polite") as engine:
        runs = engine.lease(16)
        session = engine.key.session_id
        asked = said(vattd, "evict", session, "--yes")
        assert (asked["session_id"], asked["tenant"], asked["killed"]) == (session, "polite", False)
        assert (asked["state"], asked["leased_bytes"]) == ("evicted", MIB)
        late = vattctl(vattd, "evict", session, "--yes", "--wait", "0s", "-o", "json")
        assert late.returncode == 1
        assert json.loads(late.stdout)["leased_bytes"] == MIB, "what is left is told all the same"
        engine.give_back(runs)
        assert said(vattd, "evict", session, "--yes", "--wait", "10s")["leased_bytes"] == 0
        engine.detach()


def test_a_session_that_was_killed_has_ended(vattd: Vattd) -> None:
    with engine_process(vattd, "stubborn", 16) as (process, session):
        ended = said(vattd, "evict", session, "--kill", "--yes", "--wait", "20s")
        assert (ended["pid"], ended["killed"]) == (process.pid, True)
        assert (ended["state"], ended["leased_bytes"]) == ("ended", 0)


def test_drain_says_what_is_leased_and_in_which_state_vattd_is(vattd: Vattd) -> None:
    with RawEngine(vattd.sockets, "chat") as engine:
        engine.lease(16)
        assert said(vattd, "drain") == {"state": "draining", "leased_bytes": MIB}
        late = vattctl(vattd, "drain", "--wait", "0s", "-o", "json")
        assert late.returncode == 1
        assert json.loads(late.stdout)["leased_bytes"] == MIB
        assert said(vattd, "drain", "--resume") == {"state": "serving", "leased_bytes": MIB}
        engine.detach()


def test_shrink_says_how_much_went_back() -> None:
    with Vattd("--pool-max", "64MiB", "--headroom", "0") as vattd, RawEngine(vattd.sockets, "chat") as engine:
        engine.give_back(engine.lease(32))
        assert said(vattd, "shrink") == {"freed_bytes": 2 * MIB}
        assert said(vattd, "shrink") == {"freed_bytes": 0}
        engine.detach()
