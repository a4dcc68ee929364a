"""Errors as they travel."""

from __future__ import annotations

from vatt import errors


def test_reasons_are_unique_and_their_numbers_travel() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.VattError)]
    assert len({kind.reason for kind in kinds}) == len(kinds)
    received = errors.from_wire("POOL_EXHAUSTED", "", {"requested_pages": "9", "free_pages": "3"})
    assert isinstance(received, errors.PoolExhausted)
    assert (received.requested_pages, received.free_pages) == (9, 3)


def test_an_error_of_a_newer_daemon_is_still_an_error() -> None:
    received = errors.from_wire("MADE_UP_LATER", "so it goes", {})
    assert type(received) is errors.VattError
    assert "so it goes" in str(received)
    assert type(errors.from_wire("POOL_EXHAUSTED", "no numbers", {})) is errors.VattError


def test_an_error_that_never_travels_does_not_take_its_parents_place() -> None:
    class AtHome(errors.DriverError):
        def __init__(self, pages: int) -> None:
            super().__init__(f"{pages} pages")

    assert AtHome.reason == errors.DriverError.reason
    assert type(errors.from_wire("DRIVER_ERROR", "cuMemCreate failed", {})) is errors.DriverError
