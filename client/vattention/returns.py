"""Giving pages back where a driver may refuse to let go of some of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vatt.errors import Closed, DeviceLost, DriverError, VattError
from vatt.pages import Extent, page_count_of


class StillHeld(DriverError):
    """The driver did not let go of these pages, so they are still the caller's; the others have gone back."""

    def __init__(self, extents: Sequence[Extent], refusal: DriverError) -> None:
        super().__init__(f"{page_count_of(extents)} pages stay leased: {refusal}", refusal.call, refusal.code)
        self.extents = list(extents)


class LostWithPages(StillHeld, DeviceLost):
    """The device is lost, and these pages with it: they stay leased until the process ends."""

    reason = DeviceLost.reason


def still_held(extents: Sequence[Extent], refusal: DriverError) -> StillHeld:
    return (LostWithPages if isinstance(refusal, DeviceLost) else StillHeld)(extents, refusal)


def give_back_or_keep(
    give_back: Callable[[Sequence[Extent]], None],
    extents: Sequence[Extent],
    keep: Callable[[Sequence[Extent]], None],
) -> None:
    """Give pages back. After an error `keep` is called with those that did not go, and no others: vattd may have lent
    the rest to somebody else by then."""
    try:
        give_back(extents)
    except StillHeld as refused:
        keep(refused.extents)
        raise
    except Closed:  # with the session, its pages have gone
        raise
    except VattError:
        keep(extents)
        raise
