"""The status page in a real Chromium, over a live vattd with engines of two tenants."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.daemon import Vattd
from tests.monitoring.chromium import Chromium, Look, Page, Refused, find_chromium
from tests.monitoring.status_page import LOOKS, take_screenshot
from tests.operator import operator
from tests.raw_engine import RawEngine
from vatt.v1 import vatt_pb2 as pb

pytestmark = pytest.mark.monitoring

MIB = 1 << 20
PAGES_A_MIB = 16
HOSTILE = "<img src=x onerror=\"document.title='taken'\"><script>alert(1)</script>&amp;"
PHONE = Look(width=390, height=844, phone=True)


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    path = find_chromium()
    assert path is not None, "no Chromium here: `apt-get install chromium`"
    with Chromium(path) as made:
        yield made


@pytest.fixture
def vattd() -> Iterator[Vattd]:
    options = ["--pool-max", "64MiB", "--page-size", "64KiB", "--headroom", "0", "--reclaim-within", "100ms"]
    with Vattd(*options, "--metrics-address", "127.0.0.1:0") as made:
        yield made


@pytest.fixture
def chat(vattd: Vattd) -> Iterator[RawEngine]:
    with RawEngine(vattd.sockets, "chat", client_name="the chat engine") as engine:
        engine.lease(20 * PAGES_A_MIB)
        engine.report(mapped_pages=10 * PAGES_A_MIB, token_bytes=5 * MIB)
        yield engine


@pytest.fixture
def batch(vattd: Vattd) -> Iterator[RawEngine]:
    with RawEngine(vattd.sockets, "batch", client_name=HOSTILE) as engine:
        engine.lease(30 * PAGES_A_MIB)
        yield engine


@pytest.fixture
def page(vattd: Vattd, browser: Chromium, chat: RawEngine, batch: RawEngine) -> Page:
    made = browser.open(address_of(vattd))
    made.look(Look())
    made.wait_until("!document.querySelector('main').hidden")
    return made


def address_of(vattd: Vattd) -> str:
    return vattd.ready["metrics"].removesuffix("metrics")


def shows(selector: str, text: str) -> str:
    """JavaScript: is this text in the element?"""
    return f"document.querySelector({selector!r}).innerText.includes({text!r})"


def brightness(page: Page) -> int:
    """Of the ground, 0 to 765."""
    color = page.value("getComputedStyle(document.body).backgroundColor")
    return sum(int(part) for part in re.findall(r"\d+", color)[:3])


def test_it_shows_the_tenants_and_engines_of_a_live_vattd_and_asks_nobody_else(vattd: Vattd, page: Page) -> None:
    assert "All is well" in page.text("#verdict")
    tenants = page.text("#tenant-table")
    assert "20.0 MiB, 31 %" in tenants
    assert "30.0 MiB, 47 %" in tenants
    assert "5.00 MiB, 50 %" in tenants
    assert "the chat engine" in page.text("#session-table")
    assert "50.0 MiB" in page.text("#figures")
    assert "session attached" in page.text("#event-list")
    assert [row.split("\t")[:2] for row in page.text("#owners tbody").splitlines()][:2] == [
        ["batch", "480"],
        ["chat", "320"],
    ]
    assert page.errors == []
    asked = {urlsplit(url)._replace(path="", query="").geturl() for url in page.requests if not url.startswith("data:")}
    assert asked == {address_of(vattd).rstrip("/")}


PAINTED = """(() => {
  const canvas = document.getElementById("cells");
  const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  const counts = {};
  for (let at = 0; at < pixels.length; at += 4) {
    const color = pixels.slice(at, at + 3).join();
    counts[color] = (counts[color] ?? 0) + 1;
  }
  return counts;
})()"""
SWATCHES = """[...document.querySelectorAll("#owners tbody tr")].map((row) => {
  const color = getComputedStyle(row.querySelector("i")).backgroundColor;
  return [row.innerText.trim().split("\\t")[0], color.match(/\\d+/g).join()];
})"""


def test_the_map_is_painted_in_the_tenants_colours(page: Page) -> None:
    painted, swatches = page.value(PAINTED), dict(page.value(SWATCHES))
    areas = {name: painted.get(swatches[name], 0) for name in ("chat", "batch")}
    assert areas["chat"] > 0
    assert areas["batch"] / areas["chat"] == pytest.approx(480 / 320, rel=0.1)


def test_what_an_engine_leases_more_is_shown_by_itself(page: Page, chat: RawEngine) -> None:
    page.wait_until(shows("#tenant-table", "20.0 MiB, 31 %"))
    chat.lease(4 * PAGES_A_MIB)
    page.wait_until(shows("#tenant-table", "24.0 MiB, 38 %"))
    page.wait_until(shows("#owners", "384"))
    assert page.errors == []


def test_names_that_are_markup_are_shown_as_text(page: Page) -> None:
    page.wait_until(shows("#session-table", HOSTILE))
    assert page.value("document.querySelectorAll('main img, main script').length") == 0
    assert page.value("document.title").startswith("vattd")
    assert page.errors == []


def test_even_a_script_in_the_page_could_make_no_markup_of_text(page: Page) -> None:
    assert (
        page.value("(() => { try { document.body.innerHTML = '<b>x</b>'; } catch (e) { return e.name; } })()")
        == "TypeError"
    )


def test_a_broken_promise_is_the_first_thing_said_with_what_to_type(vattd: Vattd, page: Page, batch: RawEngine) -> None:
    with operator(vattd.sockets) as op:
        op.reserve("agents", min_bytes=32 * MIB)
        with RawEngine(vattd.sockets, "agents") as agents:
            waiting = agents.stub.LeasePages.future(
                agents.lease_request(30 * PAGES_A_MIB, purpose=pb.LEASE_PURPOSE_ADMIT, wait_s=60.0)
            )
            page.wait_until(shows("#verdict", "problem"))
            assert "The promise to agents is broken" in page.text("#findings")
            assert f"vattctl evict {batch.key.session_id} --gpu host" in page.text("#findings")
            assert "broken" in page.text("#tenant-table")
            assert page.value("document.title").startswith("1 problem")
            waiting.cancel()


def test_when_vattd_ends_the_page_says_so_and_when_it_is_back_it_goes_on(vattd: Vattd, page: Page) -> None:
    port = urlsplit(address_of(vattd)).port
    vattd.stop()
    page.wait_until(shows("#verdict", "has not answered"))
    assert "no answer since" in page.text("#freshness")
    assert "vattctl status" in page.text("#findings")
    assert page.value("document.title") == "✕ vattd does not answer"
    vattd.start("--metrics-address", f"127.0.0.1:{port}")
    page.wait_until(shows("#freshness", "live"))
    assert page.value("document.body.classList.contains('gone')") is False


def test_behind_a_password_it_is_shown_to_who_gives_one(browser: Chromium, tmp_path: Path) -> None:
    passwords = tmp_path / "passwords"
    passwords.write_text("me:secret\n")
    passwords.chmod(0o600)
    options = ["--pool-max", "64MiB", "--metrics-address", "127.0.0.1:0", "--metrics-password-file", str(passwords)]
    with Vattd(*options) as vattd:
        with pytest.raises(Refused, match="AUTH"):
            browser.open(address_of(vattd))
        page = browser.open(address_of(vattd).replace("//", "//me:secret@"))
        page.wait_until(shows("#freshness", "live"))
        assert page.errors == []


def test_it_is_light_or_dark_as_the_system_is(page: Page) -> None:
    page.look(Look(dark=False))
    light = brightness(page)
    page.look(Look(dark=True))
    assert brightness(page) < 100 < 600 < light


@pytest.mark.parametrize(
    "look", [Look(1920), Look(1024), Look(700), PHONE, Look(320, phone=True)], ids=lambda look: str(look.width)
)
def test_nothing_is_wider_than_the_screen(page: Page, look: Look) -> None:
    page.look(look)
    assert page.value("document.documentElement.scrollWidth") <= look.width
    for selector in ("#verdict", "#figures", "#cells", "#tenant-table", "#session-table", "#event-list"):
        right = page.value(f"document.querySelector('{selector}').getBoundingClientRect().right")
        assert right <= look.width, selector


def test_the_map_can_be_read_by_keys_and_the_lines_as_a_table(page: Page) -> None:
    page.value("document.getElementById('cells').focus()")
    for _ in range(3):
        page.call("Input.dispatchKeyEvent", type="keyDown", key="ArrowRight", code="ArrowRight")
    assert "page 2" in page.value("document.getElementById('cell-words').textContent")
    assert not page.value("document.getElementById('tip').hidden")
    page.value("document.querySelector('#lines-details summary').click()")
    page.wait_until("document.querySelectorAll('#lines-table tbody tr').length > 0")
    assert "Leased by chat" in page.text("#lines-table")
    assert "50.0 MiB" in page.text("#lines-table tbody")


def test_every_table_has_roles_and_names_for_who_listens(page: Page) -> None:
    tree = page.call("Accessibility.getFullAXTree")["nodes"]
    roles = [node["role"]["value"] for node in tree if not node.get("ignored")]
    names = {node["name"]["value"] for node in tree if node.get("name") and node["role"]["value"] in ("table", "image")}
    page.look(PHONE)
    narrow = [
        node["role"]["value"] for node in page.call("Accessibility.getFullAXTree")["nodes"] if not node.get("ignored")
    ]
    assert {"Tenants", "Sessions", "Page map"} <= names
    assert roles.count("table") >= 3
    assert narrow.count("table") >= 3
    assert narrow.count("cell") > 10


@pytest.mark.parametrize("name", LOOKS)
def test_pictures_of_it_can_be_taken(vattd: Vattd, chat: RawEngine, tmp_path: Path, name: str) -> None:
    path = tmp_path / "picture.png"
    take_screenshot(address_of(vattd), path, LOOKS[name])
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG")
    assert int.from_bytes(content[16:20], "big") == LOOKS[name].width
