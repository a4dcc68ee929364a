"""The journal: what the next vattd must know of this one's sessions and slabs, should this one end without a word.

A file beside the sockets, of places of the same size. The facts of a session or a slab go into a place once; how many
pages it has is written over as often as it changes, by one write(2) within one page of the file, which a kill cannot
tear. Nothing is synced: the file must outlive vattd, not the machine, whose end is the end of all engines too.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from vatt.errors import InvalidRequest, SystemLimit
from vattd.peer import began_at

VERSION = 1
PLACE_BYTES = 2048  # two to a page of the file
# Sessions and slabs are bounded elsewhere, to fewer.
MAX_PLACES = 1 << 14
_HEAD = struct.Struct("<QII")  # pages, length of the facts, their CRC
_PAGES = struct.Struct("<Q")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_TYPES: dict[str, Any] = {"str": str, "int": int, "float": float, "bool": bool}


@dataclass(frozen=True, slots=True)
class JournalFacts:
    """What the journal is about. Another vattd can go on with it if these are the same."""

    device: str
    page_size_bytes: int


@dataclass(frozen=True, slots=True)
class SessionFacts:
    """What is needed to know a session again. `start_ticks` is when its process began, as the kernel counts."""

    session_id: str
    secret_digest: str
    tenant: str
    pid: int
    start_ticks: int
    uid: int
    client_name: str
    attach_time_s: float
    evicted: bool = False


@dataclass(frozen=True, slots=True)
class SlabFacts:
    """A slab, and what its descriptor is known by."""

    zone: int
    tenant: str
    mark: int


_KINDS: dict[str, type[SessionFacts] | type[SlabFacts]] = {kind.__name__: kind for kind in (SessionFacts, SlabFacts)}


@dataclass(frozen=True, slots=True)
class Entry:
    """A place's content."""

    facts: SessionFacts | SlabFacts
    page_count: int


class Journal:
    """One device's. Only the vattd that has the device's lock opens it.

    `entries` is what was there when it was opened, of this boot of the machine; all of it stays until it is dropped.
    """

    def __init__(self, path: Path, facts: JournalFacts) -> None:
        """Raises InvalidRequest for a file that this vattd cannot go on with, SystemLimit."""
        self._path = path
        with ExitStack() as undo:
            try:
                self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            except OSError as error:
                raise SystemLimit(f"cannot open {path} ({error.strerror})") from error
            undo.callback(os.close, self._fd)
            content = _for(facts, _parse(path, os.pread(self._fd, MAX_PLACES * PLACE_BYTES, 0)))
            if not content.entries:
                os.ftruncate(self._fd, 0)
            self.next_zone, self.entries = content.next_zone, list(content.entries.values())
            # By session id, or zone.
            self._places = {_key_of(entry.facts): place for place, entry in content.entries.items()}
            self._next = max(self._places.values(), default=0) + 1
            self._free = sorted(set(range(1, self._next)) - set(self._places.values()))
            self._head = {"version": VERSION, "boot_id": _boot_id(), **asdict(facts)}
            self.use_zone(self.next_zone - 1)
            undo.pop_all()

    def add_session(self, facts: SessionFacts) -> None:
        """Raises SystemLimit, and nothing is added."""
        self._add(facts.session_id, facts)

    def change(self, facts: SessionFacts | SlabFacts, page_count: int) -> None:
        """Other facts of one that is there. Raises SystemLimit, and nothing has changed."""
        self._write(self._places[_key_of(facts)], facts, page_count)

    def add_slab(self, facts: SlabFacts) -> None:
        """Raises SystemLimit, and nothing is added."""
        self.use_zone(facts.zone)
        self._add(facts.zone, facts)

    def has(self, key: str | int) -> bool:
        """Is this session, or zone, there?"""
        return key in self._places

    def note_pages(self, key: str | int, page_count: int) -> None:
        """How many pages a session, or a zone's slab, has. Raises SystemLimit."""
        self._put(_PAGES.pack(page_count), self._places[key] * PLACE_BYTES)

    def drop(self, key: str | int) -> None:
        """A session, or a zone's slab, is no more. Where that cannot be written, the next vattd sees it for itself."""
        place = self._places.pop(key, None)
        if place is not None:
            self._free.append(place)
            with suppress(SystemLimit):
                self._put(_HEAD.pack(0, 0, 0), place * PLACE_BYTES)

    def use_zone(self, zone: int) -> None:
        """From now on the next vattd's zones come after this one."""
        self.next_zone = max(self.next_zone, zone + 1)
        self._write(0, {**self._head, "next_zone": self.next_zone}, 0)

    def close(self) -> None:
        """What is in it stays."""
        os.close(self._fd)

    def _add(self, key: str | int, facts: SessionFacts | SlabFacts) -> None:
        place = self._free.pop() if self._free else self._next
        if place >= MAX_PLACES:
            raise SystemLimit(f"{self._path} is full: {MAX_PLACES} sessions and slabs")
        try:
            self._write(place, facts, 0)
        except SystemLimit:
            if place < self._next:
                self._free.append(place)
            raise
        self._next = max(self._next, place + 1)
        self._places[key] = place

    def _write(self, place: int, facts: SessionFacts | SlabFacts | dict[str, object], page_count: int) -> None:
        plain = facts if isinstance(facts, dict) else {"kind": type(facts).__name__, **asdict(facts)}
        text = json.dumps(plain, ensure_ascii=False).encode()
        if _HEAD.size + len(text) > PLACE_BYTES:
            raise SystemLimit(f"{len(text)} bytes of facts do not fit a place of {self._path}")
        content = _HEAD.pack(page_count, len(text), zlib.crc32(text)) + text
        self._put(content.ljust(PLACE_BYTES, b"\0"), place * PLACE_BYTES)

    def _put(self, content: bytes, at: int) -> None:
        try:
            written = os.pwrite(self._fd, content, at)
        except OSError as error:
            raise SystemLimit(f"cannot write {self._path} ({error.strerror}): nothing was changed") from error
        if written != len(content):
            raise SystemLimit(f"cannot write {self._path}: no room is left for it")


def read_journal(path: Path, facts: JournalFacts) -> list[Entry]:
    """What another vattd has written, of this boot of the machine. Raises InvalidRequest as Journal does."""
    return list(_for(facts, _read(path)).entries.values())


def noted_page_size_bytes(path: Path) -> int | None:
    """The size of the pages that live engines hold; None if there are none. Raises InvalidRequest as Journal does."""
    content = _read(path)
    return content.facts.page_size_bytes if content.facts is not None and content.has_engines() else None


@dataclass(frozen=True, slots=True)
class _Content:
    """A journal as it was read: entries by place."""

    facts: JournalFacts | None = None
    next_zone: int = 0
    entries: dict[int, Entry] = field(default_factory=dict)

    def has_engines(self) -> bool:
        """Does the process of any session live?"""
        sessions = [entry.facts for entry in self.entries.values() if isinstance(entry.facts, SessionFacts)]
        return any(began_at(one.pid, one.start_ticks) for one in sessions)


def _read(path: Path) -> _Content:
    try:
        return _parse(path, path.read_bytes())
    except FileNotFoundError:
        return _Content()
    except OSError as error:
        raise SystemLimit(f"cannot read {path} ({error.strerror})") from error


def _for(facts: JournalFacts, content: _Content) -> _Content:
    """What a vattd with these pages has to go on with. Raises InvalidRequest if it cannot."""
    before = content.facts
    if before is None or before == facts or not content.entries:
        return content
    if content.has_engines():
        raise InvalidRequest(
            f"engines hold pages of {before.page_size_bytes} bytes of {before.device}, from the vattd that ran before: "
            f"start with --page-size {before.page_size_bytes}, or end them first"
        )
    return _Content(next_zone=content.next_zone)


def _parse(path: Path, data: bytes) -> _Content:
    """Empty if there is nothing, or it is of another boot, whose engines are gone."""
    if not any(data[: _HEAD.size]):  # new, or its maker died before the first write
        return _Content()
    try:
        if len(data) % PLACE_BYTES:
            raise ValueError("its end is missing")
        head, _ = _parse_place(data[:PLACE_BYTES])
        if head["version"] != VERSION:
            raise ValueError(f"version {head['version']}, and this vattd knows {VERSION}")
        if head["boot_id"] != _boot_id():
            return _Content()
        entries = dict(_parse_entries(data))
        if len({_key_of(entry.facts) for entry in entries.values()}) < len(entries):
            raise ValueError("a session or slab is there twice")
        next_zone, before = (
            _whole(head["next_zone"]),
            JournalFacts(str(head["device"]), _whole(head["page_size_bytes"])),
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InvalidRequest(
            f"{path} cannot be read ({error}): end the engines of the vattd that ran before, and move the file away"
        ) from error
    return _Content(before, next_zone, entries)


def _parse_entries(data: bytes) -> Iterator[tuple[int, Entry]]:
    for place in range(1, len(data) // PLACE_BYTES):
        content = data[place * PLACE_BYTES : (place + 1) * PLACE_BYTES]
        if any(content[_PAGES.size : _HEAD.size]):
            plain, page_count = _parse_place(content)
            yield place, Entry(_facts_of(plain), page_count)


def _key_of(facts: SessionFacts | SlabFacts) -> str | int:
    return facts.session_id if isinstance(facts, SessionFacts) else facts.zone


def _parse_place(content: bytes) -> tuple[dict[str, Any], int]:
    page_count, length, crc = _HEAD.unpack_from(content)
    text = content[_HEAD.size : _HEAD.size + length]
    if len(text) != length or zlib.crc32(text) != crc or page_count >= 1 << 48:
        raise ValueError("a place is torn")
    plain = json.loads(text)
    if not isinstance(plain, dict):
        raise ValueError("a place holds no facts")
    return plain, page_count


def _facts_of(plain: dict[str, Any]) -> SessionFacts | SlabFacts:
    kind = _KINDS[plain.pop("kind")]
    wanted = {field.name: _TYPES[str(field.type)] for field in fields(kind)}
    if plain.keys() != wanted.keys():
        raise ValueError(f"facts {sorted(plain)}")
    for name, value in plain.items():
        past_all = {int: 1 << 62, float: 1 << 37}.get(wanted[name])  # a float is a time, and its year has four digits
        if type(value) is not wanted[name] or (past_all is not None and not 0 <= value < past_all):
            raise ValueError(f"{name} is {value!r}")
    return kind(**plain)


def _whole(number: Any) -> int:
    if type(number) is not int or not 0 <= number < 1 << 62:
        raise ValueError(f"{number!r} is not a count")
    return number


def _boot_id() -> str:
    return _BOOT_ID.read_text().strip()
