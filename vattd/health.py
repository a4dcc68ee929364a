"""What is wrong, in plain words, and what to type. Pure: a view of one status."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from vatt.durations import format_duration
from vatt.sizes import format_size
from vatt.v1 import vatt_pb2 as pb

# Waiting is how a full pool is shared; a wait so long is what somebody will ask about.
LONG_WAIT_S = 30.0
# Names in one sentence; the rest are counted.
MOST_NAMES = 5


class Level(enum.Enum):
    """The worst first."""

    ERROR = "error"  # something promised is not kept, or nothing is lent
    WARNING = "warning"  # it will be, or somebody is hurt by it
    NOTE = "note"  # good to know


@dataclass(frozen=True, slots=True)
class Finding:
    """One sentence each; `commands` are to be typed as they are."""

    level: Level
    what: str
    why: str
    commands: tuple[str, ...] = ()


def findings(status: pb.GetStatusResponse, now_s: float) -> list[Finding]:
    """The worst first; none: all is well. `now_s` is of the wall clock."""
    every = [
        *_of_daemon(status),
        *_of_device(status),
        *_of_promises(status, now_s),
        *_of_sessions(status),
        *_of_waits(status),
        *_of_pages(status),
    ]
    levels = list(Level)
    return sorted(every, key=lambda one: levels.index(one.level))


def _of_daemon(status: pb.GetStatusResponse) -> Iterator[Finding]:
    state, which = status.daemon.state, _which(status)
    log = "journalctl -u vattd -n 50"
    if state == "device_lost":
        yield Finding(
            Level.ERROR,
            "The device is lost: nothing is lent any more, and vattd ends.",
            "Engines on it have lost their memory too. See the driver's log, then start vattd and the engines anew.",
            ("sudo dmesg | grep -i -e NVRM -e Xid", log),
        )
    elif state == "broken":
        why = "A bug of vattd's: engines keep what they hold, and a new vattd goes on with it. See the log."
        yield Finding(Level.ERROR, "vattd is broken: nothing is lent any more.", why, (log,))
    elif state == "shutting_down":
        yield Finding(Level.WARNING, "vattd is stopping.", "Engines keep what they hold until a vattd is there again.")
    elif state == "draining":
        yield Finding(
            Level.WARNING,
            "An operator has vattd drained: no new sessions, no new requests.",
            "Running requests go on and may grow.",
            (f"vattctl drain --resume {which}",),
        )
    elif state != "serving":
        yield Finding(Level.ERROR, f"vattd is in a state that this page does not know: {state}.", "", (log,))


def _of_device(status: pb.GetStatusResponse) -> Iterator[Finding]:
    if status.pool.shortage:
        look = "free -h" if status.device.backend == "host" else "nvidia-smi"
        yield Finding(
            Level.ERROR,
            f"The device gives vattd no more memory: {status.pool.shortage}",
            "Other programs have it. Only what the pool has already can be lent, until they end.",
            (look,),
        )
    if status.device.backend != "host" and status.pool.scrub == "never":
        why = "vattd runs with --scrub never, which is for one user who trusts all that runs here."
        yield Finding(Level.NOTE, "Tenants may read each other's old bytes.", why)


def _of_promises(status: pb.GetStatusResponse, now_s: float) -> Iterator[Finding]:
    page, which = status.pool.page_size_bytes or 1, _which(status)
    tenants = {session.session_id: session.tenant for session in status.sessions}
    for tenant in status.tenants:
        promise = tenant.promise
        missing = format_size(promise.missing_bytes)
        if promise.state == pb.Promise.STATE_BROKEN:
            yield _broken(tenant, tenants, which)
        elif promise.state == pb.Promise.STATE_PENDING:
            left_s = promise.deadline.ToNanoseconds() / 1e9 - now_s if promise.HasField("deadline") else 0.0
            until = f"; they have {format_duration(left_s)} more" if left_s > 0 else ""
            what = f"{tenant.name} waits for {missing} that it was promised."
            yield Finding(Level.WARNING, what, f"Sessions above their own min were asked to give it back{until}.")
        over_bytes = _over_max(tenant, page)
        if over_bytes > 0:
            what = f"{tenant.name} is over its max by {format_size(over_bytes)}."
            yield Finding(Level.NOTE, what, "Its max was lowered: that is asked back, and no more is lent to it.")


def _broken(tenant: pb.Tenant, tenant_of: Mapping[str, str], which: str) -> Finding:
    """`tenant_of` names the sessions' tenants."""
    sessions = [name for name in tenant.promise.broken_by if name != "device"]
    names = [f"{name} ({tenant_of[name]})" if name in tenant_of else name for name in sessions]
    if len(sessions) < len(tenant.promise.broken_by):
        names.append("other programs on the device")
    by = f", kept by {_some(names)}" if names else ""
    what = f"The promise to {tenant.name} is broken: {format_size(tenant.promise.missing_bytes)} is missing{by}."
    if not sessions:
        return Finding(Level.ERROR, what, "vattd cannot take memory from what is not a session of its own.")
    return Finding(
        Level.ERROR,
        what,
        "It was asked back and not given in time. This asks for all that is held there; with --kill the process ends.",
        tuple(f"vattctl evict {name} {which}" for name in sessions[:MOST_NAMES]),
    )


def _of_sessions(status: pb.GetStatusResponse) -> Iterator[Finding]:
    which = _which(status)

    def those(state: str) -> list[pb.Session]:
        return [session for session in status.sessions if session.state == state]

    blamed = {name for tenant in status.tenants for name in tenant.promise.broken_by}  # said already
    overdue = [one for one in status.sessions if one.asked_back_overdue and one.session_id not in blamed]
    if overdue:
        size = format_size(sum(session.asked_back_bytes for session in overdue))
        yield Finding(
            Level.WARNING,
            f"{size} asked back is not given by {_sessions(overdue)}.",
            "An engine that hangs answers nothing. This asks for all that is held there; with --kill the process ends.",
            tuple(f"vattctl evict {session.session_id} {which}" for session in overdue[:MOST_NAMES]),
        )
    if fenced := those("fenced"):
        why = (
            "Their connection broke and their processes live: they keep their pages, and get no more until it is back."
        )
        yield Finding(Level.WARNING, f"Cut off: {_sessions(fenced)}.", why)
    if silent := those("silent"):
        size = format_size(sum(session.leased_bytes for session in silent))
        yield Finding(
            Level.WARNING,
            f"Not back since vattd started anew: {_sessions(silent)}.",
            f"Their processes live and keep {size}. If they are of no use any more, end them.",
            tuple(f"vattctl evict {session.session_id} --kill {which}" for session in silent[:MOST_NAMES]),
        )
    if recovering := those("recovering"):
        why = "vattd was started anew, and engines come back by themselves; until then what they hold is kept for them."
        yield Finding(Level.NOTE, f"Expected back: {_sessions(recovering)}.", why)
    if evicted := those("evicted"):
        why = "An operator asked them to: they get no more pages, and give back what they have as their requests end."
        yield Finding(Level.NOTE, f"Asked to leave: {_sessions(evicted)}.", why)


def _of_waits(status: pb.GetStatusResponse) -> Iterator[Finding]:
    for tenant in status.tenants:
        waited_s = tenant.longest_wait.ToNanoseconds() / 1e9
        if waited_s >= LONG_WAIT_S:
            yield Finding(
                Level.WARNING,
                f"{tenant.name} has waited {format_duration(waited_s)} for memory, {format_size(tenant.waiting_bytes)} "
                "in all.",
                "Others hold what it waits for. A min for it, a max for them, or a larger pool would shorten that.",
                (f"vattctl tenants {_which(status)}",),
            )


def _of_pages(status: pb.GetStatusResponse) -> Iterator[Finding]:
    counts = {row.state: row.page_count for row in status.pool.pages_by_state}
    page = status.pool.page_size_bytes
    if counts.get("quarantined"):
        size = format_size(counts["quarantined"] * page)
        why = "Somebody may still write to it. It is destroyed and made anew as soon as it is certain that nobody can."
        yield Finding(Level.NOTE, f"{size} is in quarantine, and lent to nobody.", why)
    if status.daemon.disputed_pages_total:
        size = format_size(status.daemon.disputed_pages_total * page)
        why = "Neither holds it now, and nobody gets it while both live."
        yield Finding(Level.WARNING, f"{size} is claimed by two sessions each.", why)


def _which(status: pb.GetStatusResponse) -> str:
    """So that a command is for this vattd, whatever else runs on the machine."""
    return f"--gpu {status.device.uuid}"


def _over_max(tenant: pb.Tenant, page_size_bytes: int) -> int:
    """By how many bytes; 0 or less: it is not."""
    guarantee = tenant.guarantee
    if not guarantee.HasField("max_bytes"):
        return 0
    most = max(-(-guarantee.min_bytes // page_size_bytes), guarantee.max_bytes // page_size_bytes)  # as vattd rounds
    return tenant.leased_bytes - most * page_size_bytes


def _sessions(sessions: Iterable[pb.Session]) -> str:
    return _some([f"{session.session_id} ({session.tenant})" for session in sessions])


def _some(names: list[str]) -> str:
    """The first few, and how many more."""
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(names[:MOST_NAMES]) + more
