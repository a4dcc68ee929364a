"""Pages that a driver does not let go of stay with who gave them back, and no others do."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.vattention.test_session import pages_leased
from tests.vattention.test_tidings import Answers, reclaim
from vatt.errors import DeviceLost, DriverError, PoolExhausted
from vatt.pages import Extent, extents_of, page_count_of
from vatt.v1 import vatt_pb2
from vattention.reclaimer import Reclaim, ReclaimDepth, Reclaimer
from vattention.returns import StillHeld
from vattention.session import Session
from vattention.vmm.driver import NotReleased

WAIT_S = 10.0
EXTENTS = 3


class Refusing:
    """A session whose driver does not let go of certain pages, until it is mended."""

    def __init__(self, session: Session, socket_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.session, self.socket_dir = session, socket_dir
        self.refused: set[int] = set()
        self._release = session.mapper.release
        monkeypatch.setattr(session.mapper, "release", self.release)
        pages = [page_id for extent in session.lease(3 * EXTENTS) for page_id in extent.page_ids]
        self.extents = [Extent(page_id, 1) for page_id in sorted(pages)[::3]]  # not adjacent
        session.give_back(extents_of(set(pages) - {extent.first for extent in self.extents}))

    def release(self, extent: Extent) -> None:
        if self.refused & set(extent.page_ids):
            raise DriverError("the driver does not let go", call="release")
        self._release(extent)

    def refuse(self, number: int) -> Extent:
        self.refused = set(self.extents[number].page_ids)
        return self.extents[number]

    def mend(self) -> None:
        self.refused = set()

    @property
    def leased_pages(self) -> int:
        """By our word and by vattd's, which are the same."""
        assert self.session.leased_pages == pages_leased(self.socket_dir, self.session)
        return self.session.leased_pages


@pytest.fixture
def refusing(vattd_socket_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Refusing]:
    with Session.connect("returns", socket_dir=vattd_socket_dir) as session:
        yield Refusing(session, vattd_socket_dir, monkeypatch)


each_extent = pytest.mark.parametrize("number", range(EXTENTS))


@each_extent
def test_what_the_driver_keeps_is_told_and_the_rest_goes_back(number: int, refusing: Refusing) -> None:
    kept = refusing.refuse(number)
    with pytest.raises(StillHeld) as refused:
        refusing.session.give_back(refusing.extents)
    assert refused.value.extents == [kept]
    assert refusing.leased_pages == 1
    refusing.mend()
    refusing.session.give_back([kept])
    assert refusing.leased_pages == 0


@each_extent
def test_the_page_cache_keeps_no_page_that_has_gone_back(number: int, refusing: Refusing) -> None:
    pages = refusing.session.pages
    refusing.refuse(number)
    pages.put(refusing.extents)  # more than it keeps
    with pages._changed:
        assert pages._changed.wait_for(lambda: pages.page_count == refusing.session.leased_pages == 1, WAIT_S)
    refusing.mend()


@each_extent
def test_a_reclaim_counts_and_keeps_no_page_wrongly(
    number: int, refusing: Refusing, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = refusing.session
    answers = Answers(session, monkeypatch)
    session.pages.set_growth_step(session, 100)  # so that the page cache keeps them until they are wanted
    with session.pages._leasing:  # and its background gives back none
        session.pages.put(refusing.extents)
        refusing.refuse(number)
        given = session._reclaimer._given_pages
        session._connection.tidings.hear_reclaim(reclaim(1, vatt_pb2.RECLAIM_DEPTH_IDLE))
        answers.wait_for(1)
        assert session._reclaimer._given_pages - given == EXTENTS - 1
        assert refusing.leased_pages == session.pages.page_count == 1
        refusing.mend()
        session._connection.tidings.hear_reclaim(reclaim(2, vatt_pb2.RECLAIM_DEPTH_IDLE))
        answers.wait_for(1, 2)
        assert refusing.leased_pages == session.pages.page_count == 0


class PagesOfFive:
    """Stands for the page cache."""

    def __init__(self) -> None:
        self.free = [Extent(page_id, 1) for page_id in range(5)]

    def give_up(self, page_count: int) -> list[Extent]:
        taken, self.free = self.free[:page_count], self.free[page_count:]
        return taken

    def put(self, extents: Sequence[Extent]) -> None:
        self.free += extents

    def users(self) -> list[Any]:
        return []


def test_a_reclaim_told_while_pages_are_refused_gets_no_more_than_it_asks_for() -> None:
    pages: Any = PagesOfFive()
    given: list[int] = []
    answered = threading.Event()

    def give_back(extents: Sequence[Extent]) -> None:
        given.append(page_count_of(extents))
        if len(given) == 1:
            reclaimer.ask(Reclaim(2, 1, ReclaimDepth.IDLE, 60.0))
            raise StillHeld(extents[:1], DriverError("no"))

    def answer(reclaim_id: int) -> None:
        if reclaim_id == 2:
            answered.set()

    reclaimer = Reclaimer(pages, give_back, answer)
    reclaimer.ask(Reclaim(1, 3, ReclaimDepth.IDLE, 60.0))
    assert answered.wait(WAIT_S)
    reclaimer.close()
    assert given == [3, 1]
    assert len(pages.free) == 5 - 2 - 1


def test_a_session_that_cannot_give_a_page_back_leaves_it_leased_and_its_page_cache_may_be_closed_again(
    vattd_socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session.connect("returns", socket_dir=vattd_socket_dir)
    refusing = Refusing(session, vattd_socket_dir, monkeypatch)
    with session.pages._leasing:  # the background gives back none
        session.pages.put(refusing.extents)
        refusing.refuse(1)
    with pytest.raises(StillHeld):
        session.close()
    assert (session.pages.page_count, session.leased_pages) == (1, 1)
    assert pages_leased(vattd_socket_dir, session) == 1
    refusing.mend()
    session.pages.close()
    assert (session.pages.page_count, session.leased_pages) == (0, 0)
    session.mapper.close()


def test_a_page_that_comes_after_close_and_cannot_go_back_lies_in_the_page_cache(
    refusing: Refusing, caplog: pytest.LogCaptureFixture
) -> None:
    pages = refusing.session.pages
    pages.close()
    kept = refusing.refuse(1)
    with caplog.at_level(logging.WARNING):
        pages.put(refusing.extents)
    assert "stay here" in caplog.text
    assert list(pages._free) == [kept]
    assert refusing.leased_pages == 1
    with pytest.raises(StillHeld):
        pages.close()
    assert list(pages._free) == [kept]
    refusing.mend()
    pages.close()
    assert refusing.leased_pages == pages.page_count == 0


@pytest.fixture
def session(vattd_socket_dir: Path) -> Iterator[Session]:
    with Session.connect("returns", socket_dir=vattd_socket_dir) as session:
        yield session


def lease_in_parts(session: Session, monkeypatch: pytest.MonkeyPatch, *, parts: int, page_count: int) -> None:
    """A lease in parts of two pages that is refused when the last is asked for."""
    grant, asked = session._client.lease, 0

    def lease(*arguments: Any) -> Any:
        nonlocal asked
        asked += 1
        if asked == parts:
            raise PoolExhausted(2, 0)
        return grant(*arguments)

    session._connection.attached.max_pages_per_lease = 2
    with monkeypatch.context() as patch:
        patch.setattr(session._client, "lease", lease)
        with pytest.raises(PoolExhausted):
            session.lease(page_count)


def test_what_an_undone_lease_cannot_give_back_is_leased_next(
    session: Session, vattd_socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = session.mapper.release
    refused: list[Extent] = []

    def refuse_first(extent: Extent) -> None:
        if not refused:
            refused.append(extent)
        if extent == refused[0]:
            raise DriverError("the driver does not let go", call="release")
        release(extent)

    with monkeypatch.context() as patch:
        patch.setattr(session.mapper, "release", refuse_first)
        lease_in_parts(session, monkeypatch, parts=3, page_count=6)
    kept_pages = page_count_of(refused)
    assert session.leased_pages == pages_leased(vattd_socket_dir, session) == kept_pages == 2
    lease_in_parts(session, monkeypatch, parts=2, page_count=6)
    assert session.leased_pages == pages_leased(vattd_socket_dir, session) == kept_pages
    pages = session.lease(4)
    assert session.leased_pages == pages_leased(vattd_socket_dir, session) == 4
    assert set(refused[0].page_ids) <= {page_id for extent in pages for page_id in extent.page_ids}
    session.give_back(pages)
    assert session.leased_pages == pages_leased(vattd_socket_dir, session) == 0


def test_a_page_that_was_left_and_has_gone_back_since_is_not_leased_again(
    session: Session, vattd_socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(extent: Extent) -> None:
        raise DriverError("the driver does not let go", call="release")

    with monkeypatch.context() as patch:
        patch.setattr(session.mapper, "release", refuse)
        lease_in_parts(session, monkeypatch, parts=2, page_count=4)
    session.give_back(extents_of(session._leases._generation_of))  # by whoever had them once, and says it again
    pages = session.lease(3)
    assert session.leased_pages == pages_leased(vattd_socket_dir, session) == page_count_of(pages) == 3
    session.give_back(pages)


def test_of_pages_that_the_driver_half_released_those_that_it_kept_stay_leased(
    session: Session, vattd_socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = session.mapper.release

    def release_half(extent: Extent) -> None:
        gone, kept = extent.split(extent.page_count // 2)
        assert kept is not None
        release(gone)
        raise NotReleased([kept], DriverError("the driver does not let go", call="release"))

    pages = session.lease(4)
    with monkeypatch.context() as patch:
        patch.setattr(session.mapper, "release", release_half)
        with pytest.raises(StillHeld) as refused:
            session.give_back(pages)
    assert page_count_of(refused.value.extents) == 2
    assert session.leased_pages == pages_leased(vattd_socket_dir, session) == 2
    session.give_back(refused.value.extents)
    assert session.leased_pages == pages_leased(vattd_socket_dir, session) == 0


def test_a_device_that_is_lost_as_pages_are_given_back_is_told_and_the_pages_stay(
    session: Session, vattd_socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(extent: Extent) -> None:
        raise DeviceLost("an illegal address")

    pages = session.lease(4)
    with monkeypatch.context() as patch:
        patch.setattr(session.mapper, "release", lose)
        with pytest.raises(DeviceLost) as lost:
            session.give_back(pages)
    assert isinstance(lost.value, StillHeld)
    assert page_count_of(lost.value.extents) == 4
    assert session.leased_pages == pages_leased(vattd_socket_dir, session) == 4
    session.give_back(pages)
