"""Guarantees, promises and waits in words, the same in every command."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from rich.text import Text

from vatt.durations import format_duration
from vatt.sizes import format_size
from vatt.users import format_users
from vatt.v1 import vatt_pb2 as pb

# Names in one line of words; the rest are counted.
MOST_NAMES = 5


def min_words(guarantee: pb.Guarantee) -> str:
    """`8.00 GiB hard`."""
    if not guarantee.min_bytes:
        return "-"
    mode = "hard" if guarantee.min_mode == pb.MIN_MODE_HARD else "soft"
    return f"{format_size(guarantee.min_bytes)} {mode}"


def max_words(guarantee: pb.Guarantee) -> str:
    return format_size(guarantee.max_bytes) if guarantee.HasField("max_bytes") else "-"


def over_max_notes(tenant: pb.Tenant, pool: pb.Pool) -> list[Text]:
    """One line where a tenant leases more than its max, which was lowered since."""
    if not tenant.guarantee.HasField("max_bytes"):
        return []
    page = pool.page_size_bytes or 1
    most_pages = max(-(-tenant.guarantee.min_bytes // page), tenant.guarantee.max_bytes // page)  # as vattd rounds
    over_bytes = tenant.leased_bytes - most_pages * page
    if over_bytes <= 0:
        return []
    return [Text(f"over its max by {format_size(over_bytes)}: asked back, and no more is lent to it", style="red")]


def guarantee_words(guarantee: pb.Guarantee) -> str:
    """`min 8.00 GiB hard, max 40.0 GiB, weight 2`, less what says nothing."""
    parts = [f"min {min_words(guarantee)}"] if guarantee.min_bytes else []
    if guarantee.HasField("max_bytes"):
        parts.append(f"max {max_words(guarantee)}")
    if guarantee.weight > 1 or not parts:
        parts.append(f"weight {guarantee.weight}")
    return ", ".join(parts)


def promise_words(promise: pb.Promise, sessions: Iterable[pb.Session], now_s: float) -> Text:
    """How far a min is kept. `sessions` are those of the same status."""
    missing = f": {format_size(promise.missing_bytes)} missing"
    if promise.state == pb.Promise.STATE_BROKEN:
        return Text(f"broken by {_breakers(promise, sessions)}{missing}", style="red")
    if promise.state == pb.Promise.STATE_PENDING:
        left_s = promise.deadline.ToNanoseconds() / 1e9 - now_s if promise.HasField("deadline") else 0.0
        until = f" for {format_duration(left_s)} more" if left_s > 0 else ""
        return Text(f"pending{until}{missing}", style="yellow")
    lent = f", {format_size(promise.lent_bytes)} of it lent to others" if promise.lent_bytes else ""
    return Text(f"held{lent}")


def waiting_words(tenant: pb.Tenant) -> str:
    """`1.00 GiB, 12 s`: what waits, and how long the first of it has."""
    if not tenant.waiting_leases:
        return "-"
    return f"{format_size(tenant.waiting_bytes)}, {format_duration(tenant.longest_wait.ToNanoseconds() / 1e9)}"


def source_words(source: str) -> str:
    """Who set what a tenant has."""
    return {"command": "a command", "config": "the configuration file"}.get(source, source)


def access_words(tenant: pb.Tenant) -> str:
    """Who may use a tenant."""
    if tenant.HasField("access"):
        return format_users(tenant.access.uids, tenant.access.gids)
    if not tenant.HasField("owner_uid"):
        return "whoever names it first"
    return f"{format_users([tenant.owner_uid], [])}, who named it first"


def until_words(tenant: pb.Tenant, now_s: float) -> str:
    """When a reservation ends; empty if it does not by itself."""
    if not tenant.HasField("until"):
        return ""
    end_s = tenant.until.ToNanoseconds() / 1e9
    local = datetime.fromtimestamp(end_s).astimezone()
    return f"{local:%Y-%m-%d %H:%M:%S}, {format_duration(max(0.0, end_s - now_s))} more"


def session_words(session: pb.Session) -> str:
    return f"{session.session_id} ({session.tenant})"


def some_of(names: Iterable[str]) -> str:
    """The first few, and how many more."""
    every = list(names)
    more = f" and {len(every) - MOST_NAMES} more" if len(every) > MOST_NAMES else ""
    return ", ".join(every[:MOST_NAMES]) + more


def _breakers(promise: pb.Promise, sessions: Iterable[pb.Session]) -> str:
    known = {session.session_id: session_words(session) for session in sessions}
    known["device"] = "other programs on the device"
    return some_of(known.get(name, name) for name in promise.broken_by)
