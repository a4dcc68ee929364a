"""One frame of every vattd, for scripts and for terminals that can do no more."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict
from typing import Any

import click
from rich.console import Group

from vatt.errors import VattError
from vatt.sockets import Sockets
from vattctl.daemon import Unreachable
from vattctl.output import daemons_json, show, spaced, stdout_console, to_plain, unreachable_words
from vattctl.top.frame import frame
from vattctl.top.history import History
from vattctl.top.page_map import capacity
from vattctl.top.rates import Rates
from vattctl.top.shape import MOST_MAP_LINES
from vattctl.top.source import Source
from vattctl.top.view import View

# A wider map is hard to read, and tables have what matters.
WIDEST = 120
# More than any frame is high: all rows are shown.
HEIGHT = 1_000_000


def print_once(found: Sequence[Sockets], interval_s: float, output: str) -> None:
    """Asks each twice, for rates. Raises VattError if none answers."""
    width = min(WIDEST, stdout_console().width)
    histories, unreachable = _histories(found, interval_s, capacity(width, MOST_MAP_LINES, letters=True))
    if output == "json":
        click.echo(daemons_json([_plain(history) for history in histories], unreachable))
    else:
        view, now_s = View(letters=True, curves=False), time.time()
        frames = [Group(*frame(history, view, width, HEIGHT, now_s, "", "").lines) for history in histories]
        show(spaced([*frames, *unreachable_words(unreachable)]))
    if not histories:
        raise unreachable[0].error


def _histories(found: Sequence[Sockets], interval_s: float, cell_count: int) -> tuple[list[History], list[Unreachable]]:
    """Of two answers each, and who did not give them."""
    silent: dict[Sockets, Unreachable] = {}
    histories = {sockets: History(interval_s) for sockets in found}
    with ExitStack() as stack:
        sources = [stack.enter_context(closing(Source(sockets))) for sockets in found]
        for pause_s in (interval_s, 0.0):
            for source in sources:
                if source.sockets in silent:
                    continue
                try:
                    histories[source.sockets].add(source.read(cell_count))
                except VattError as error:
                    silent[source.sockets] = Unreachable(source.sockets, error)
            time.sleep(pause_s)
    return [history for sockets, history in histories.items() if sockets not in silent], list(silent.values())


def _plain(history: History) -> Mapping[str, Any]:
    """A status as `vattctl status` has it, with the page map and what two answers tell."""
    if history.latest is None:
        return {}
    status, tenants = history.latest.status, history.latest.status.tenants
    rates = {"all": _rates(history.rates()), "tenants": {one.name: _rates(history.rates(one.name)) for one in tenants}}
    return {**to_plain(status), "page_map": to_plain(history.latest.page_map), "rates": rates}


def _rates(rates: Rates | None) -> Mapping[str, float] | None:
    return None if rates is None else asdict(rates)
