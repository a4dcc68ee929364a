"""The status page of a live vattd: that it says what GetStatus says, and that it is all in one piece."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib import resources
from typing import Any

import pytest

from tests.daemon import Vattd
from tests.operator import Operator, operator
from tests.raw_engine import RawEngine
from vatt.plain import to_plain
from vatt.v1 import vatt_pb2 as pb
from vattd.status_page import SCRIPTS, page

MIB = 1 << 20
ANSWER_WITHIN_S = 30
# What changes from moment to moment by itself, and what is not for everybody.
VOLATILE = {"memory"}
NOT_SHOWN = {"tenants": {"owner_uid", "access"}, "sessions": {"uid"}}


@pytest.fixture
def vattd() -> Iterator[Vattd]:
    options = ("--pool-max", "64MiB", "--page-size", "64KiB", "--headroom", "0", "--metrics-address", "127.0.0.1:0")
    with Vattd(*options) as made:
        yield made


@pytest.fixture
def op(vattd: Vattd) -> Iterator[Operator]:
    with operator(vattd.sockets) as made:
        yield made


def fetch(vattd: Vattd, path: str) -> tuple[int, bytes]:
    url = vattd.ready["metrics"].replace("/metrics", path)
    try:
        with urllib.request.urlopen(url, timeout=ANSWER_WITHIN_S) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def status_json(vattd: Vattd) -> dict[str, Any]:
    code, body = fetch(vattd, "/status.json")
    assert code == 200
    return dict(json.loads(body))


def fresh(vattd: Vattd) -> dict[str, Any]:
    """As it is now, whatever was kept for viewers."""
    before = status_json(vattd)["time"]
    while True:
        one = status_json(vattd)
        if one["time"] != before:
            return one


def test_the_page_says_what_get_status_says_less_what_is_for_operators(vattd: Vattd, op: Operator) -> None:
    op.reserve("chat", min_bytes=8 * MIB, max_bytes=32 * MIB, weight=2)
    with RawEngine(vattd.sockets, "chat", client_name="an engine") as chat, RawEngine(vattd.sockets, "batch") as batch:
        chat.lease(20)
        batch.lease(30)
        chat.report(mapped_pages=12, token_bytes=3 * MIB, static_reservation_bytes=64 * MIB)
        expected = to_plain(op.status())
        shown = fresh(vattd)["status"]
    for part, fields in NOT_SHOWN.items():
        for one in expected[part]:
            for field in fields:
                del one[field]
    assert {name: shown[name] for name in shown if name not in VOLATILE} == {
        name: expected[name] for name in expected if name not in VOLATILE
    }
    assert shown["memory"]["total_bytes"] == expected["memory"]["total_bytes"]


def test_the_page_map_has_every_page_once_and_each_tenant_s_as_many_as_it_leases(vattd: Vattd) -> None:
    with RawEngine(vattd.sockets, "chat") as chat, RawEngine(vattd.sockets, "batch") as batch:
        chat.lease(20)
        batch.lease(30)
        shown = fresh(vattd)
        cells = shown["page_map"]
        assert cells["columns"] == ["cell_count", "state", "tenant", "page_count", "total_pages"]
        assert cells["pages_per_cell"] == 1
        assert sum(row[0] * row[4] for row in cells["rows"]) == 64 * MIB // (64 << 10)
        leased: dict[str, int] = {}
        for count, state, tenant, pages, _ in cells["rows"]:
            if state == "leased":
                name = cells["tenants"][tenant - 1]
                leased[name] = leased.get(name, 0) + count * pages
        assert leased == {"chat": 20, "batch": 30}


def test_what_happened_and_what_was_sampled_is_there(vattd: Vattd) -> None:
    with RawEngine(vattd.sockets, "chat") as chat:
        chat.lease(20)
        while not (shown := status_json(vattd))["timeline"]["tenants"]:
            pass  # a sample comes every five seconds
    timeline = shown["timeline"]
    [tenant] = timeline["tenants"]
    assert tenant["name"] == "chat"
    assert tenant["leased_bytes"][-1] == 20 * (64 << 10)
    lengths = {len(timeline["ages_s"]), len(timeline["free_bytes"]), len(tenant["leased_bytes"])}
    assert len(lengths) == 1
    kinds = [event["kind"] for event in shown["events"]]
    assert kinds[-1] == "vattd_started"
    assert "session_attached" in kinds
    assert "lease_granted" not in kinds


def test_healthz_is_200_while_vattd_serves_and_503_with_the_reason_else(vattd: Vattd, op: Operator) -> None:
    assert fetch(vattd, "/healthz") == (200, b"serving\n")
    op.admin.Drain(pb.DrainRequest())
    assert fetch(vattd, "/healthz") == (503, b"draining\n")
    assert [one["level"] for one in fresh(vattd)["health"]] == ["warning"]
    op.admin.Drain(pb.DrainRequest(resume=True))
    assert fetch(vattd, "/healthz") == (200, b"serving\n")
    assert fresh(vattd)["health"] == []


def test_the_page_is_one_piece_and_its_policy_allows_that_piece_only(vattd: Vattd) -> None:
    code, body = fetch(vattd, "/")
    assert code == 200
    html = body.decode()
    # The namespaces of its own drawings are no addresses that it loads.
    assert set(re.findall(r"https?://[^\s\"']+", html)) == {"http://www.w3.org/2000/svg"}
    assert not re.findall(r"<(?:link|script|img|iframe)[^>]*(?:src|href)=\"(?!data:)", html)
    assert "style=" not in html
    policy = dict(page().headers)["Content-Security-Policy"]
    for tag, directive in (("style", "style-src"), ("script", "script-src")):
        [inside] = re.findall(rf"<{tag}[^>]*>(.*?)</{tag}>", html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in policy
    assert "unsafe" not in policy


@pytest.mark.parametrize("name", SCRIPTS)
def test_no_script_makes_markup_of_strings(name: str) -> None:
    text = resources.files("vattd.status_page").joinpath(name).read_text()
    for way in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "new Function",
        "localStorage",
    ):
        assert way not in text
