"""Files and words that make no sense are refused in words, whatever is in them."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.daemon import Vattd
from tests.operator import operator
from vatt.errors import InvalidRequest, VattError
from vatt.sizes import format_size, parse_part, parse_size, parse_size_or_percent
from vatt.users import parse_users
from vattd.config import parse_address
from vattd.guarantee import Access
from vattd.journal import PLACE_BYTES, Journal, JournalFacts, SessionFacts, SlabFacts, read_journal
from vattd.reservation import Reservation
from vattd.state_file import StateFile
from vattd.tenant_config import read_tenants

PAGE = 1 << 16
POOL = 1 << 30
FACTS = JournalFacts("host", PAGE)
SESSION = SessionFacts("7-1", "ab" * 32, "chat", 7, 1234, 1000, "vattention/1", 1.5)

many = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
words = st.text(max_size=30) | st.sampled_from(
    ["8GiB", "50%", "1e9", "-1", "٣GiB", "nan", "9" * 40, "host", "1000", "@0"]
)
odd = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, -1, 1 << 32, 1 << 63, 1 << 64, 10**400])
    | st.floats()
    | words
)
values = st.recursive(
    odd, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=4), max_leaves=8
)
RESERVATION = Reservation(Access(frozenset([0])), min_bytes=PAGE, weight=2).to_plain()


@st.composite
def spoilt(draw: Callable[[Any], Any], whole: dict[str, Any]) -> dict[str, Any]:
    """`whole`, with some of it missing, more than there should be, or something else."""
    document = dict(whole)
    for key in draw(st.lists(st.sampled_from([*whole, "more"]), min_size=1, max_size=3)):
        if draw(st.booleans()) and key in document:
            del document[key]
        else:
            document[key] = draw(values)
    return document


def check_state(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    try:
        state = StateFile(path).read()
    except InvalidRequest:
        return
    for reservation in state.reservations.values():
        format_size(reservation.min_bytes)


@many
@given(content=st.binary(max_size=200) | values.map(lambda value: json.dumps(value).encode()))
def test_a_state_file_of_anything(tmp_path: Path, content: bytes) -> None:
    check_state(tmp_path / "state", content)


@many
@given(one=spoilt(RESERVATION), name=words, document=spoilt({"version": 1, "revision": 3, "tenants": {}}))
def test_a_state_file_that_is_nearly_right(
    tmp_path: Path, one: dict[str, Any], name: str, document: dict[str, Any]
) -> None:
    right = {"version": 1, "revision": 3, "tenants": {name: one}}
    check_state(tmp_path / "state", json.dumps(right).encode())
    check_state(tmp_path / "state", json.dumps(document).encode())


@pytest.mark.parametrize("text", ["[" * 100_000, '{"version": 1, "revision": 1, "tenants": {"a": ' * 50_000])
def test_a_state_file_without_a_bottom(tmp_path: Path, text: str) -> None:
    check_state(tmp_path / "state", text.encode())


@many
@given(plain=spoilt(RESERVATION))
def test_a_reservation_is_understood_or_refused(plain: dict[str, Any]) -> None:
    try:
        reservation = Reservation.from_plain(plain)
    except (ValueError, TypeError, KeyError):
        return
    assert Reservation.from_plain(reservation.to_plain()) == reservation
    assert 0 <= reservation.min_bytes < 1 << 63, "the wire must be able to say it"


def toml_of(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {toml_of(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml_of, value)) + "]"
    return repr(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else json.dumps(value)


def check_tenants(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    try:
        reservations = read_tenants(path, POOL, PAGE, 0)
    except VattError:
        return
    assert sum(one.min_bytes for one in reservations.values()) <= POOL


@many
@given(content=st.binary(max_size=200) | words.map(str.encode))
def test_a_configuration_of_anything(tmp_path: Path, content: bytes) -> None:
    check_tenants(tmp_path / "tenants.toml", content)


TENANT = {"min": "1MiB", "max": "50%", "weight": 2, "hard": True, "allow": ["0", 1, "@0"]}


@many
@given(tenant=spoilt(TENANT), name=words)
def test_a_configuration_that_is_nearly_right(tmp_path: Path, tenant: dict[str, Any], name: str) -> None:
    lines = [f"{json.dumps(key)} = {toml_of(value)}" for key, value in tenant.items()]
    text = "\n".join([f"[tenants.{json.dumps(name)}]", *lines, "[tenants.good]", 'min = "64KiB"'])
    check_tenants(tmp_path / "tenants.toml", text.encode(errors="replace"))


@pytest.mark.parametrize("text", ["a = " + "[" * 100_000, "a = " + "{a=" * 50_000])
def test_a_configuration_without_a_bottom(tmp_path: Path, text: str) -> None:
    check_tenants(tmp_path / "tenants.toml", text.encode())


@many
@given(text=words, whole=st.integers(0, 1 << 60))
def test_sizes_users_and_addresses_are_understood_or_refused(text: str, whole: int) -> None:
    parsers: list[Callable[[], object]] = [
        lambda: parse_size(text),
        lambda: parse_size_or_percent(text, whole),
        lambda: parse_part(text, whole, PAGE),
        lambda: parse_users([text]),
        lambda: parse_address(text),
    ]
    for parse in parsers:
        try:
            answer = parse()
        except InvalidRequest:
            continue
        if isinstance(answer, int):
            assert answer >= 0
            format_size(answer)


def place(plain: object, page_count: int = 0) -> bytes:
    """As the journal has it, whatever it says."""
    text = json.dumps(plain).encode()
    return (struct.pack("<QII", page_count, len(text), zlib.crc32(text)) + text)[:PLACE_BYTES].ljust(PLACE_BYTES, b"\0")


def check_journal(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    before = path.read_bytes()
    try:
        read_journal(path, FACTS)
        Journal(path, FACTS).close()
    except InvalidRequest:
        assert path.read_bytes() == before, "what is not understood is left as it is"


@many
@given(content=st.binary(max_size=300), at=st.integers(0, 4 * PLACE_BYTES - 1))
def test_a_journal_with_anything_in_it(tmp_path: Path, content: bytes, at: int) -> None:
    path = tmp_path / "journal"
    path.unlink(missing_ok=True)
    journal = Journal(path, FACTS)
    journal.add_session(SESSION)
    journal.add_slab(SlabFacts(3, "chat", 99))
    journal.close()
    whole = path.read_bytes()
    check_journal(path, whole[:at] + content + whole[at + len(content) :])
    check_journal(path, content)


@many
@given(
    head=spoilt({"version": 1, "device": "host", "page_size_bytes": PAGE, "next_zone": 3, "boot_id": ""}),
    facts=spoilt({"kind": "SessionFacts", "session_id": "7-1", "pid": 7, "tenant": "a"}),
    pages=st.integers(0, (1 << 64) - 1),
)
def test_a_journal_whose_sums_are_right_and_whose_facts_are_not(
    tmp_path: Path, head: dict[str, Any], facts: dict[str, Any], pages: int
) -> None:
    head["boot_id"] = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    check_journal(tmp_path / "journal", place(head) + place(facts, pages))


@pytest.mark.parametrize(
    "facts",
    [{"pid": 0}, {"pid": 1 << 61}, {"uid": 1 << 61}, {"attach_time_s": 1e11}, {"secret_digest": "é"}],
)
def test_vattd_starts_or_says_why_not_whatever_its_journal_claims(facts: dict[str, Any]) -> None:
    with Vattd("--pool-max", "4MiB") as vattd:
        vattd.stop()
        path = vattd.sockets.journal
        head = json.loads(path.read_bytes()[16:PLACE_BYTES].rstrip(b"\0"))
        # Of a process that lives: ours, unless the facts say otherwise.
        own = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        whole = {"kind": "SessionFacts", **{name: getattr(SESSION, name) for name in SESSION.__slots__}}
        whole |= {"pid": int(Path("/proc/self/stat").read_text().split()[0]), "start_ticks": int(own[19])} | facts
        path.write_bytes(place(head) + place(whole, 3))
        vattd.start()
        assert "Traceback" not in vattd.log
        with operator(vattd.sockets) as op:
            status = op.status()
        assert status.daemon.state == "serving"
