"""What threads beside the event loop ask of it: answered in time, or not at all."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError
from concurrent.futures import TimeoutError as NotInTime  # not the built-in one before Python 3.11
from typing import Any, TypeVar

from vattd.site import Unanswered

ANSWER_WITHIN_S = 5.0

T = TypeVar("T")
Call = Callable[[], Coroutine[Any, Any, T]]

log = logging.getLogger(__name__)


def ask(loop: asyncio.AbstractEventLoop, what: Call[T]) -> T:
    """What `what` returns on the event loop. Raises Unanswered."""
    if loop.is_closed():
        raise Unanswered("vattd is ending")
    answer = asyncio.run_coroutine_threadsafe(what(), loop)
    try:
        return answer.result(ANSWER_WITHIN_S)
    except NotInTime:
        answer.cancel()
        raise Unanswered(f"vattd's event loop has not answered for {ANSWER_WITHIN_S:g} s") from None
    except CancelledError:
        raise Unanswered("vattd is ending") from None
    except Exception as error:
        log.exception("figures could not be read")
        raise Unanswered("a bug of vattd's: its log says more") from error
