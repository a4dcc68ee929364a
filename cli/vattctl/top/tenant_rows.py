"""The table of tenants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.text import Text

from vatt.durations import format_duration
from vatt.v1 import vatt_pb2 as pb
from vattctl.top.cells import named, nothing, part, rate, size, size_rate
from vattctl.top.curve import curve
from vattctl.top.history import History
from vattctl.top.marks import Mark, mark
from vattctl.top.rates import Rates
from vattctl.top.table import Column, words

_PROMISES = {
    pb.Promise.STATE_HELD: ("held", ""),
    pb.Promise.STATE_PENDING: ("pending", "yellow"),
    pb.Promise.STATE_BROKEN: ("BROKEN", "bold red"),
}


@dataclass(frozen=True, slots=True)
class TenantRow:
    """`rates` are None until two answers were compared."""

    tenant: pb.Tenant
    mark: Mark
    rates: Rates | None
    leases: Sequence[float | None]
    waits: Sequence[float | None]

    @property
    def wait_s(self) -> float:
        """Of the lease that waits longest now."""
        return self.tenant.longest_wait.ToNanoseconds() / 1e9 if self.tenant.waiting_leases else 0.0


def tenant_rows(history: History) -> list[TenantRow]:
    if history.latest is None:
        return []
    return [_row(one, history) for one in history.latest.status.tenants]


def _row(tenant: pb.Tenant, history: History) -> TenantRow:
    name = tenant.name
    return TenantRow(tenant, mark(history.seats[name]), history.rates(name), history.leases(name), history.waits(name))


def tenant_columns(*, letters: bool, curves: bool) -> list[Column[TenantRow]]:
    """Without `curves`, for one frame of one point."""
    columns: list[Column[TenantRow]] = [
        words(
            "TENANT",
            1,
            14,
            lambda row, _: named(_name(row), row.mark, letters=letters),
            _name,
            lambda row: len(_name(row)) + 2,
        ),
        _sizes("LEASED", 2, lambda row: row.tenant.leased_bytes),
        _sizes("MAPPED", 3, lambda row: row.tenant.mapped_bytes),
        Column("USED", 10, 5, lambda row, _: part(_used(row)), lambda row: _used(row) or 0.0),
        _limits("MIN", 6, lambda row: row.tenant.guarantee.min_bytes),
        Column("PROMISE", 7, 8, _promise, lambda row: row.tenant.promise.state),
        _limits("MAX", 11, lambda row: row.tenant.guarantee.max_bytes),
        Column("SESSIONS", 8, 9, lambda row, _: Text(str(_sessions(row))), _sessions),
        Column("LEASE/s", 4, 8, lambda row, _: rate(row.rates.leases_per_s if row.rates else None), _leases),
        Column("LEASES", 9, 10, lambda row, width: Text(curve(row.leases, width), row.mark.style), _leases, 30),
        Column("B/s", 12, 8, lambda row, _: size_rate(row.rates.bytes_per_s if row.rates else None), _bytes),
        Column("DENY/s", 13, 7, lambda row, _: rate(row.rates.refusals_per_s if row.rates else None), _refusals),
        Column("WAIT", 5, 9, _wait, lambda row: row.wait_s),
        Column("WAITS", 14, 10, lambda row, width: Text(curve(row.waits, width), "yellow"), lambda row: row.wait_s, 30),
    ]
    return columns if curves else [column for column in columns if column.title not in ("LEASES", "WAITS")]


def _sizes(title: str, importance: int, size_bytes: Callable[[TenantRow], int]) -> Column[TenantRow]:
    return Column(title, importance, 8, lambda row, _: size(size_bytes(row)), size_bytes)


def _limits(title: str, importance: int, limit_bytes: Callable[[TenantRow], int]) -> Column[TenantRow]:
    """0 is none."""
    return Column(
        title, importance, 8, lambda row, _: size(limit_bytes(row)) if limit_bytes(row) else nothing(), limit_bytes
    )


def _name(row: TenantRow) -> str:
    return row.tenant.name


def _named_width(row: TenantRow) -> int:
    return len(_name(row)) + len("A ")


def _sessions(row: TenantRow) -> int:
    return row.tenant.session_count


def _used(row: TenantRow) -> float | None:
    """Of the mapped memory, what tokens fill."""
    return row.tenant.token_bytes / row.tenant.mapped_bytes if row.tenant.mapped_bytes else None


def _leases(row: TenantRow) -> float:
    return row.rates.leases_per_s if row.rates else 0.0


def _bytes(row: TenantRow) -> float:
    return row.rates.bytes_per_s if row.rates else 0.0


def _refusals(row: TenantRow) -> float:
    return row.rates.refusals_per_s if row.rates else 0.0


def _promise(row: TenantRow, width: int) -> Text:
    shown = _PROMISES.get(row.tenant.promise.state)
    return Text(*shown) if shown else nothing()


def _wait(row: TenantRow, width: int) -> Text:
    return Text(format_duration(row.wait_s), "yellow") if row.tenant.waiting_leases else nothing()
