"""The journal: what was written is read, whatever ended its writer; what cannot be understood is refused in words."""

from __future__ import annotations

import errno
import os
import random
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from vatt.errors import InvalidRequest, SystemLimit
from vattd import journal as journal_module
from vattd.journal import (
    PLACE_BYTES,
    Entry,
    Journal,
    JournalFacts,
    SessionFacts,
    SlabFacts,
    noted_page_size_bytes,
    read_journal,
)
from vattd.peer import start_ticks_of

FACTS = JournalFacts("host", 65536)
SESSION = SessionFacts("7-1", "ab" * 32, "chat", 7, 1234, 1000, "vattention/1 \N{SNOWMAN}", 1.5)
SLAB = SlabFacts(3, "chat", 99)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal"


def written(path: Path) -> None:
    journal = Journal(path, FACTS)
    journal.add_session(SESSION)
    journal.add_slab(SLAB)
    journal.note_pages("7-1", 5)
    journal.note_pages(3, 12)
    journal.close()


def test_what_was_written_is_read_by_the_next(path: Path) -> None:
    written(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    expected = [Entry(SESSION, 5), Entry(SLAB, 12)]
    assert read_journal(path, FACTS) == expected
    journal = Journal(path, FACTS)
    assert journal.entries == expected
    assert journal.next_zone == 4
    journal.note_pages("7-1", 6)
    journal.change(replace(SESSION, evicted=True), 7)
    journal.drop(3)
    journal.drop(3)
    journal.close()
    assert read_journal(path, FACTS) == [Entry(replace(SESSION, evicted=True), 7)]
    assert Journal(path, FACTS).next_zone == 4, "what is gone is not used again"


def test_nothing_of_another_boot_counts(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(path)
    monkeypatch.setattr(journal_module, "_boot_id", lambda: "another")
    assert read_journal(path, FACTS) == []
    journal = Journal(path, JournalFacts("host", 4096))
    assert (journal.entries, journal.next_zone) == ([], 0)


def test_a_file_that_is_not_there_or_empty_says_nothing(path: Path) -> None:
    assert read_journal(path, FACTS) == []
    path.write_bytes(b"")
    assert Journal(path, FACTS).entries == []


def test_places_are_used_again_and_are_bounded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "MAX_PLACES", 4)
    journal = Journal(path, FACTS)
    for _ in range(3):
        for number in range(3):
            journal.add_session(replace(SESSION, session_id=f"7-{number}"))
        with pytest.raises(SystemLimit, match="full"):
            journal.add_session(replace(SESSION, session_id="8-1"))
        assert not journal.has("8-1")
        for number in range(3):
            journal.drop(f"7-{number}")
    assert path.stat().st_size <= 4 * PLACE_BYTES
    journal.close()
    assert read_journal(path, FACTS) == []


def test_other_pages_are_refused_while_engines_live_that_hold_some(path: Path) -> None:
    written(path)
    assert noted_page_size_bytes(path) is None, "pid 7 began at another time"
    journal = Journal(path, FACTS)
    journal.change(replace(SESSION, pid=os.getpid(), start_ticks=start_ticks_of(os.getpid())), 5)
    journal.close()
    assert noted_page_size_bytes(path) == 65536
    with pytest.raises(InvalidRequest, match="start with --page-size 65536"):
        Journal(path, JournalFacts("host", 4096))
    journal = Journal(path, FACTS)
    journal.change(SESSION, 5)
    journal.close()
    journal = Journal(path, JournalFacts("host", 4096))
    assert (journal.entries, journal.next_zone) == ([], 4), "what is gone is not used again"
    journal.close()


def test_a_full_disk_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(path)
    journal = Journal(path, FACTS)

    def fail(fd: int, content: bytes, at: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", fail)
        changes: list[Callable[[], None]] = [
            lambda: journal.note_pages("7-1", 9),
            lambda: journal.add_session(replace(SESSION, session_id="8-1")),
            lambda: journal.change(replace(SESSION, evicted=True), 0),
        ]
        for change in changes:
            with pytest.raises(SystemLimit, match="No space left"):
                change()
        journal.drop(3)  # the next one sees for itself that nobody has it
    assert not journal.has("8-1")
    journal.add_session(replace(SESSION, session_id="9-1"))
    journal.close()
    assert {entry.facts for entry in read_journal(path, FACTS)} >= {SESSION, replace(SESSION, session_id="9-1")}


def test_whatever_is_in_the_file_it_is_read_or_refused_in_words(path: Path) -> None:
    chance = random.Random(20261125)
    written(path)
    good = path.read_bytes()
    refused: list[str] = []
    for _ in range(2000):
        content = bytearray(good)
        match chance.randrange(4):
            case 0:
                for _ in range(chance.randrange(1, 5)):
                    content[chance.randrange(len(content))] = chance.randrange(256)
            case 1:
                del content[chance.randrange(len(content)) :]
            case 2:
                at = chance.randrange(0, len(content), 8)
                content[at : at + 8] = chance.randbytes(8)
            case 3:
                content = bytearray(chance.randbytes(chance.randrange(3 * PLACE_BYTES)))
        path.write_bytes(content)
        try:
            entries = read_journal(path, FACTS)
        except InvalidRequest as error:
            refused.append(str(error))
        else:
            assert {entry.facts for entry in entries} <= {SESSION, SLAB}
    assert all("move the file away" in words or "start with --page-size" in words for words in refused)
    assert 200 < len(refused) < 2000
