"""The table of sessions."""

from __future__ import annotations

from dataclasses import dataclass

from rich.text import Text

from vatt.durations import format_duration
from vatt.v1 import vatt_pb2 as pb
from vattctl.top.cells import named, nothing, part, size
from vattctl.top.history import History
from vattctl.top.marks import Mark, mark
from vattctl.top.table import Column, words


@dataclass(frozen=True, slots=True)
class SessionRow:
    session: pb.Session
    mark: Mark
    age_s: float

    @property
    def used(self) -> float | None:
        return self.session.token_bytes / self.session.mapped_bytes if self.session.mapped_bytes else None


def session_rows(history: History, now_s: float) -> list[SessionRow]:
    if history.latest is None:
        return []
    return [
        SessionRow(one, mark(history.seats.get(one.tenant, 0)), max(0.0, now_s - one.attach_time.ToNanoseconds() / 1e9))
        for one in history.latest.status.sessions
    ]


def session_columns(*, letters: bool) -> list[Column[SessionRow]]:
    return [
        words("SESSION", 1, 14, lambda row, _: named(row.session.session_id, row.mark, letters=letters), _id),
        words("TENANT", 4, 10, lambda row, _: Text(row.session.tenant), _tenant, lambda row: len(_tenant(row))),
        words("STATE", 5, 10, lambda row, _: _state(row.session), lambda row: str(_state(row.session))),
        Column("LEASED", 2, 8, lambda row, _: size(row.session.leased_bytes), lambda row: row.session.leased_bytes),
        Column("MAPPED", 3, 8, lambda row, _: size(row.session.mapped_bytes), lambda row: row.session.mapped_bytes),
        Column("USED", 7, 5, lambda row, _: part(row.used), lambda row: row.used or 0.0),
        Column("ASKED", 8, 8, lambda row, _: _asked(row.session), lambda row: row.session.asked_back_bytes),
        Column("AGE", 6, 10, lambda row, _: Text(format_duration(row.age_s)), lambda row: row.age_s),
        words("CLIENT", 9, 8, lambda row, _: Text(row.session.client_name), _client, lambda row: len(_client(row))),
    ]


def _id(row: SessionRow) -> tuple[int, ...]:
    """By process, then by its sessions; an id that is no numbers comes first."""
    parts = row.session.session_id.split("-")
    return tuple(int(one) for one in parts) if all(one.isdecimal() for one in parts) else ()


def _tenant(row: SessionRow) -> str:
    return row.session.tenant


def _client(row: SessionRow) -> str:
    return row.session.client_name


def _state(session: pb.Session) -> Text:
    """What is asked back and not there yet comes before that it is attached."""
    if session.state != "attached":
        return Text(session.state, "red")
    if session.asked_back_overdue:
        return Text("overdue", "red")
    return Text("asked back", "yellow") if session.asked_back_bytes else Text("attached")


def _asked(session: pb.Session) -> Text:
    return size(session.asked_back_bytes) if session.asked_back_bytes else nothing()
