"""The lines above the page map: who answers, memory, the pool as a bar, how fast it is leased."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.text import Text

from vatt.durations import format_duration
from vatt.sizes import format_size
from vatt.v1 import vatt_pb2 as pb
from vattctl.top.cells import rate
from vattctl.top.curve import curve
from vattctl.top.history import History
from vattctl.top.pool_bar import pool_bar
from vattctl.words import some_of

LABEL_WIDTH = 8
FIGURE_WIDTH = 9
# Of what stands after a curve: as much as it ever needs, so that curves do not move.
WORDS_WIDTH = 27
STATE_STYLES = {"serving": "bold green", "draining": "bold yellow"}


def who_line(status: pb.GetStatusResponse, now_s: float, right: str, width: int, *, is_stale: bool) -> Text:
    """The device, and how its vattd is; `right` stands at the end. The device's name is cut first."""
    daemon, device = status.daemon, status.device
    name = Text(device.uuid, "bold")
    if device.name != device.uuid:
        name.append(f"  {device.name}", "not bold")
    uptime = format_duration(max(0.0, now_s - daemon.start_time.ToNanoseconds() / 1e9))
    state = Text.assemble("  ", (daemon.state, STATE_STYLES.get(daemon.state, "bold red")), f"  up {uptime}")
    if is_stale:
        state = Text.assemble("  ", ("no answer", "bold red"))
    version = Text(f"  vattd {daemon.version}, pid {daemon.pid}", "dim")
    spare = width - name.cell_len - state.cell_len - len(right) - 2
    if spare < 0:
        name.truncate(max(8, name.cell_len + spare), overflow="ellipsis")
    return ends(Text.assemble(name, state, version if version.cell_len <= spare else ""), Text(right, "dim"), width)


def figure_lines(history: History, width: int, *, letters: bool, curves: bool) -> Iterator[Text]:
    """Without `curves`, for one frame of one point."""
    if history.latest is None:
        return
    status, rates = history.latest.status, history.rates()
    yield _memory(status, width)
    yield _pool(status, history, width, letters=letters)
    leases = Text(curve(history.leases(), _curve_width(width)) if curves else "", "cyan")
    words = f"{format_size(round(rates.bytes_per_s))}/s, {rate(rates.refusals_per_s)} refused/s" if rates else ""
    yield _activity("leases", f"{rate(rates.leases_per_s)}/s" if rates else "-", leases, words)
    waits = Text(curve(history.waits(), _curve_width(width)) if curves else "", "yellow")
    yield _activity("wait", format_duration(rates.wait_s) if rates else "-", waits, _waiting(status))


def notices(status: pb.GetStatusResponse) -> Iterator[Text]:
    """What an operator must not miss, a line each."""
    pool = status.pool
    if pool.shortage:
        yield Text(pool.shortage, "red")
    if status.daemon.state == "draining":
        yield Text("draining: no new sessions or requests; `vattctl drain --resume` ends it", "yellow")
    broken = [one.name for one in status.tenants if one.promise.state == pb.Promise.STATE_BROKEN]
    if broken:
        yield Text(f"promise broken: {some_of(broken)}; `vattctl tenants` shows by whom", "red")
    quarantined = sum(row.page_count for row in pool.pages_by_state if row.state == "quarantined")
    if quarantined:
        yield Text(f"{format_size(quarantined * pool.page_size_bytes)} quarantined, lent to nobody", "red")


def ends(left: Text, right: Text, width: int) -> Text:
    """Both ends of a line; the right one only if it fits."""
    room = width - left.cell_len - right.cell_len
    return left if room < 2 else Text.assemble(left, " " * room, right)


def _memory(status: pb.GetStatusResponse, width: int) -> Text:
    memory, pool = status.memory, status.pool
    other_bytes = max(0, memory.total_bytes - memory.free_bytes - memory.pages_bytes)
    parts = [
        f"{format_size(memory.free_bytes)} free of {format_size(memory.total_bytes)}",
        f"vattd {format_size(memory.pages_bytes)}",
        f"others {format_size(other_bytes)}",
    ]
    if pool.promised_bytes:
        parts.append(f"promised {format_size(pool.promised_bytes)}")
    if pool.kept_free_bytes:
        parts.append(f"kept free {format_size(pool.kept_free_bytes)}")
    return Text.assemble(_label("memory"), _as_many_as_fit(parts, width - LABEL_WIDTH))


def _pool(status: pb.GetStatusResponse, history: History, width: int, *, letters: bool) -> Text:
    pool = status.pool
    leased_bytes = sum(tenant.leased_bytes for tenant in status.tenants)
    words = f" {leased_bytes / (pool.max_bytes or 1):4.0%} of {format_size(pool.max_bytes)} leased"
    bar = pool_bar(status, history.seats, max(4, width - LABEL_WIDTH - len(words)), letters=letters)
    return Text.assemble(_label("pool"), bar, words)


def _activity(label: str, figure: str, drawn: Text, words: str) -> Text:
    return Text.assemble(_label(label), figure.rjust(FIGURE_WIDTH), " " if drawn else "", drawn, f"  {words}")


def _curve_width(width: int) -> int:
    return max(0, width - LABEL_WIDTH - FIGURE_WIDTH - WORDS_WIDTH - 3)


def _waiting(status: pb.GetStatusResponse) -> str:
    count = sum(tenant.waiting_leases for tenant in status.tenants)
    size = format_size(status.pool.waiting_pages * status.pool.page_size_bytes)
    return f"{count} waiting, for {size}" if count else "nobody waits"


def _label(words: str) -> Text:
    return Text(words.ljust(LABEL_WIDTH), "bold")


def _as_many_as_fit(parts: Sequence[str], width: int) -> str:
    words = parts[0]
    for part in parts[1:]:
        if len(words) + len(part) + 2 > width:
            break
        words += f", {part}"
    return words
