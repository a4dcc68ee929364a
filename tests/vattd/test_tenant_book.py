"""Reservations: what a file may say, and that a change is in force as a whole or not at all."""

from __future__ import annotations

import asyncio
import json
import math
import os
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.vattd.fake_driver import FakeDriver
from vatt.errors import InvalidRequest, Overcommitted, SystemLimit, TenantDenied, TenantUnknown
from vattd.driver_thread import DriverThread
from vattd.guarantee import Access, MinMode
from vattd.ledger import Ledger
from vattd.pool import Pool
from vattd.reservation import Reservation, check_all
from vattd.rules import PoolLimits
from vattd.state_file import State, StateFile
from vattd.stock import Stock
from vattd.tenant_book import Change, Source, TenantBook
from vattd.tenant_config import read_tenants

PAGE = 4096
POOL_PAGES = 64
OWN_UID = 1000
OURS = Access(frozenset([OWN_UID]))


class Shelf:
    """A book over a pool that does not run, in a directory of its own."""

    def __init__(self, directory: Path, configured: Mapping[str, Reservation] | None = None) -> None:
        driver = FakeDriver()
        ledger = Ledger(Stock(POOL_PAGES, shares_zone=False), page_size_bytes=PAGE, incarnation=1)
        thread = DriverThread()
        thread.close()
        limits = PoolLimits(0, POOL_PAGES * PAGE, 0)
        self.pool = Pool(ledger, driver, thread, limits, lambda error: None)
        self.told: list[str] = []
        self.file = StateFile(directory / "host.tenants.json")
        self.book = TenantBook(self.pool, self.file, configured or {}, OWN_UID, self.told.append)

    def reserve(self, name: str, change: Change) -> Reservation:
        return asyncio.run(self.book.reserve(name, change))

    def unreserve(self, name: str) -> None:
        asyncio.run(self.book.unreserve(name))

    def expire(self, now_s: float) -> None:
        asyncio.run(self.book.expire(now_s))

    def min_pages(self, name: str) -> int:
        tenant = self.pool.ledger.tenant(name)
        return 0 if tenant is None else tenant.guarantee.min_pages


reservations = st.builds(
    Reservation,
    access=st.builds(
        Access,
        st.frozensets(st.integers(0, 1 << 31), min_size=1, max_size=3),
        st.frozensets(st.integers(0, 1 << 31), max_size=3),
    ),
    min_bytes=st.integers(0, 1 << 20),
    max_bytes=st.none() | st.integers(1 << 20, 1 << 50),
    weight=st.integers(1, 1000),
    mode=st.sampled_from(MinMode),
    until_s=st.none() | st.floats(0, 2.5e11),  # later than the year 9999 the wire cannot say
    revision=st.integers(0, 1 << 40),
)


@given(one=reservations)
def test_a_reservation_is_the_same_after_a_way_through_json(one: Reservation) -> None:
    assert Reservation.from_plain(json.loads(json.dumps(one.to_plain()))) == one


@given(one=reservations)
def test_a_min_is_rounded_up_to_pages_and_a_max_down(one: Reservation) -> None:
    guarantee = one.guarantee(PAGE)
    assert 0 <= guarantee.min_pages * PAGE - one.min_bytes < PAGE
    if one.max_bytes is not None and guarantee.max_pages is not None:
        assert guarantee.max_pages >= guarantee.min_pages
        assert guarantee.max_pages * PAGE <= max(one.max_bytes, guarantee.min_pages * PAGE)


@given(
    field=st.sampled_from(["min_bytes", "max_bytes", "weight", "mode", "uids", "gids", "until_s", "revision"]),
    value=st.one_of(st.text(max_size=3), st.lists(st.text(max_size=2), max_size=2), st.booleans(), st.floats()),
)
def test_a_state_file_with_anything_else_in_a_field_is_refused_and_never_crashes(field: str, value: object) -> None:
    plain = {**Reservation(OURS).to_plain(), field: value}
    try:
        one = Reservation.from_plain(plain)
    except (ValueError, TypeError, KeyError):
        return
    assert one.to_plain()[field] == value or (isinstance(value, float) and math.isnan(value))


def test_what_a_command_set_is_there_again_after_a_restart(tmp_path: Path) -> None:
    first = Shelf(tmp_path)
    first.reserve("a", Change(min_bytes=5 * PAGE, weight=7, mode=MinMode.HARD))
    first.reserve("a", Change(max_bytes=9 * PAGE))
    again = Shelf(tmp_path)
    found = again.book.in_force("a")
    assert found is not None
    assert found[0] == Reservation(OURS, 5 * PAGE, 9 * PAGE, 7, MinMode.HARD, revision=2)
    assert found[1] is Source.COMMAND
    assert again.min_pages("a") == 5
    assert again.book.revision == 2


def test_a_change_that_cannot_be_written_is_not_in_force(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = Shelf(tmp_path)
    shelf.reserve("a", Change(min_bytes=PAGE))
    before = shelf.file.path.read_text()

    def full(source: object, target: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "rename", full)
    with pytest.raises(SystemLimit, match=r"No space left on device.*nothing was changed"):
        shelf.reserve("a", Change(min_bytes=2 * PAGE))
    with pytest.raises(SystemLimit):
        shelf.unreserve("a")
    assert (shelf.min_pages("a"), shelf.book.revision, shelf.told) == (1, 1, ["a"])
    assert shelf.file.path.read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == [shelf.file.path.name], "nothing half-written stays"


def test_a_change_that_the_pool_refuses_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = Shelf(tmp_path)
    shelf.reserve("a", Change(min_bytes=PAGE))
    before = shelf.file.read()

    def refuse(*arguments: object) -> None:
        raise InvalidRequest("too many tenants")

    monkeypatch.setattr(shelf.pool, "configure", refuse)
    with pytest.raises(InvalidRequest):
        shelf.reserve("b", Change(min_bytes=PAGE))
    assert shelf.file.read() == before
    assert shelf.book.in_force("b") is None


def test_a_file_is_never_half_written_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    file = StateFile(tmp_path / "host.tenants.json")
    assert file.read() == State()
    file.write(State(3, {"a": Reservation(OURS, revision=3)}))
    assert file.path.stat().st_mode & 0o777 == 0o600
    assert file.read() == State(3, {"a": Reservation(OURS, revision=3)})


def test_mins_are_checked_together_with_those_of_the_configuration(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, {"c": Reservation(OURS, min_bytes=40 * PAGE)})
    with pytest.raises(Overcommitted, match="too much"):
        shelf.reserve("a", Change(min_bytes=25 * PAGE))
    shelf.reserve("c", Change(min_bytes=10 * PAGE))
    shelf.reserve("a", Change(min_bytes=54 * PAGE))
    with pytest.raises(Overcommitted):
        shelf.unreserve("c")  # the configuration's 40 pages would not fit any more
    assert shelf.min_pages("c") == 10


def test_a_reservation_ends_in_time_and_the_configuration_holds_again(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, {"c": Reservation(OURS, min_bytes=3 * PAGE)})
    shelf.reserve("c", Change(min_bytes=9 * PAGE, until_s=100.0))
    shelf.reserve("c", Change(weight=2))
    assert shelf.book.next_end_s() == 100.0, "what is not given stays as it was"
    shelf.expire(99.0)
    assert shelf.min_pages("c") == 9
    shelf.expire(100.0)
    assert shelf.min_pages("c") == 3
    assert shelf.book.next_end_s() is None
    shelf.reserve("c", Change(until_s=200.0))
    shelf.reserve("c", Change(until_s=math.inf))
    assert shelf.book.next_end_s() is None


def test_a_reservation_that_cannot_be_ended_is_tried_again_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = Shelf(tmp_path)
    shelf.reserve("a", Change(min_bytes=PAGE, until_s=100.0))

    def full(state: State) -> None:
        raise SystemLimit("no space")

    monkeypatch.setattr(shelf.file, "write", full)
    shelf.expire(100.0)
    assert shelf.min_pages("a") == 1
    assert shelf.book.next_end_s() == 160.0
    found = shelf.book.in_force("a")
    assert found is not None
    assert found[0].until_s == 100.0, "what was said stays as it was said"
    monkeypatch.undo()
    shelf.expire(160.0)
    assert shelf.min_pages("a") == 0


def test_the_first_reservation_of_a_tenant_leaves_it_to_whom_it_belongs(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    shelf.pool.ledger.open_session("s", "theirs", 2000)
    assert shelf.reserve("theirs", Change(weight=2)).access == Access(frozenset([2000]))
    shelf.reserve("theirs", Change(access=Access(frozenset([3, 2000]))))
    shelf.unreserve("theirs")
    with pytest.raises(TenantDenied, match="belongs to uid 2000"):
        shelf.pool.ledger.open_session("t", "theirs", 3)
    assert shelf.reserve("new", Change(weight=2)).access == OURS
    everybody = Access(frozenset(), frozenset([100]))
    assert shelf.reserve("new", Change(access=everybody)).access == everybody
    assert shelf.reserve("new", Change(weight=3)).access == everybody


def test_changes_come_one_after_the_other_and_a_slow_disk_keeps_nobody_from_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = Shelf(tmp_path)
    write, may_write, revisions = shelf.file.write, threading.Event(), []

    def slow(state: State) -> None:
        assert may_write.wait(10)
        revisions.append(state.revision)
        write(state)

    monkeypatch.setattr(shelf.file, "write", slow)

    async def story() -> None:
        first = asyncio.create_task(shelf.book.reserve("a", Change(min_bytes=40 * PAGE)))
        second = asyncio.create_task(shelf.book.reserve("b", Change(min_bytes=40 * PAGE)))
        third = asyncio.create_task(shelf.book.reserve("b", Change(min_bytes=PAGE)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not first.done()
        assert shelf.min_pages("a") == 0, "not in force before it is on disk"
        first.cancel()  # its caller goes away: it is done as a whole all the same
        may_write.set()
        with pytest.raises(Overcommitted):
            await second
        await third

    asyncio.run(story())
    assert (shelf.min_pages("a"), shelf.min_pages("b"), revisions, shelf.told) == (40, 1, [1, 2], ["a", "b"])
    assert shelf.file.read().revision == 2


def test_only_what_a_command_set_can_be_unreserved(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, {"c": Reservation(OURS)})
    with pytest.raises(InvalidRequest, match="configuration file"):
        shelf.unreserve("c")
    with pytest.raises(TenantUnknown):
        shelf.unreserve("nobody")


def test_more_tenants_than_a_message_can_name_are_counted() -> None:
    many = {f"t{number}": Reservation(OURS, min_bytes=(number + 1) * PAGE) for number in range(9)}
    with pytest.raises(Overcommitted, match=r"t8 .* and 4 more"):
        check_all(many, PAGE, PAGE)


def read_config(directory: Path, text: str) -> dict[str, Reservation]:
    path = directory / "tenants.toml"
    path.write_text(text)
    return read_tenants(path, POOL_PAGES * PAGE, PAGE, OWN_UID)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[tenants.a]\nmin = '300KiB'", "[tenants.a]: a min of 300 KiB is more than the pool's 256 KiB"),
        ("[tenants.a]\nmax = '1KiB'", "[tenants.a]: a max of 1.00 KiB is less than a page of 4.00 KiB"),
        ("[tenants.a]\nmin = 'lots'", "(key min)"),
        ("[tenants.a]\nmax = '101%'", "(key max)"),
        ("[tenants.a]\nmin = 8", "[tenants.a]: '8' is 8 bytes, and a page has 4.00 KiB: write for example 8GiB"),
        ("[tenants.a]\nhard = true", "[tenants.a]: hard says what becomes of a min, and there is none"),
    ],
)
def test_a_configuration_that_no_pool_can_keep_is_refused_with_file_tenant_and_key(
    tmp_path: Path, text: str, words: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read_config(tmp_path, text)
    assert str(refused.value).startswith(f"{tmp_path / 'tenants.toml'}: ")
    assert words in str(refused.value)


def test_mins_of_a_file_that_do_not_fit_the_pool_together_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(Overcommitted) as refused:
        read_config(tmp_path, "[tenants.a]\nmin = '60%'\n[tenants.b]\nmin = '60%'")
    assert str(refused.value).startswith(f"{tmp_path / 'tenants.toml'}: the mins would be ")
    assert "(a 152 KiB, b 152 KiB)" in str(refused.value)
    assert "Lower a min, or start with a larger --pool-max" in str(refused.value)


def test_a_part_of_the_pool_is_at_least_a_page_in_a_file_as_in_a_command(tmp_path: Path) -> None:
    read = read_config(tmp_path, "[tenants.a]\nmin = '0.1%'\n[tenants.b]\nmin = '0%'\n[tenants.c]\nmin = '50%'")
    assert [one.min_bytes for one in read.values()] == [PAGE, 0, POOL_PAGES // 2 * PAGE]
