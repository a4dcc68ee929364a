"""What survives a restart: reservations, in a file that is replaced whole or not at all."""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vatt.errors import InvalidRequest, SystemLimit
from vattd.reservation import Reservation

VERSION = 1


@dataclass(frozen=True, slots=True)
class State:
    """`revision` counts all changes there ever were."""

    revision: int = 0
    reservations: Mapping[str, Reservation] = field(default_factory=dict)


class StateFile:
    """One device's. Only the vattd that has it `held` reads and writes it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def held(self) -> Iterator[None]:
        """While it is, no other vattd may have it. Raises InvalidRequest if one has, SystemLimit."""
        lock = self.path.with_suffix(".lock")
        try:
            fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise SystemLimit(f"cannot open {lock} ({error.strerror}): choose another --state-dir") from error
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InvalidRequest(
                    f"another vattd keeps its reservations in {self.path}: choose another --state-dir"
                ) from None
            self._remove_temporaries()
            yield
        finally:
            os.close(fd)

    def read(self) -> State:
        """Empty if there is no file. Raises InvalidRequest for one that this vattd cannot understand."""
        try:
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return State()
        except (OSError, UnicodeDecodeError) as error:
            raise self._unreadable(error) from error
        try:
            return _parse(json.loads(text))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise self._unreadable(error) from error

    def write(self, state: State) -> None:
        """Raises SystemLimit, and the old file stays."""
        plain = {
            "version": VERSION,
            "revision": state.revision,
            "tenants": {name: one.to_plain() for name, one in sorted(state.reservations.items())},
        }
        try:
            self._replace(json.dumps(plain, indent=2) + "\n")
        except OSError as error:
            raise SystemLimit(f"cannot write {self.path} ({error.strerror}): nothing was changed") from error

    def _replace(self, text: str) -> None:
        with ExitStack() as closing:
            # Before the rename: after it, nothing may fail any more.
            directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            closing.callback(os.close, directory)
            with ExitStack() as undo:
                fd, name = tempfile.mkstemp(dir=self.path.parent, prefix=self._temporary_prefix)  # mode 0600
                undo.callback(os.unlink, name)
                with open(fd, "w", encoding="utf-8") as file:
                    file.write(text)
                    file.flush()
                    os.fsync(file.fileno())
                os.rename(name, self.path)
                undo.pop_all()
            with suppress(OSError):  # the file is in its place whatever comes of this
                os.fsync(directory)  # the new name, too, survives a crash of the machine

    @property
    def _temporary_prefix(self) -> str:
        return f".{self.path.name}-"

    def _remove_temporaries(self) -> None:
        """What vattds have left that were killed while they wrote."""
        with suppress(OSError):  # they do no harm
            for path in self.path.parent.iterdir():
                if path.name.startswith(self._temporary_prefix):
                    path.unlink()

    def _unreadable(self, error: Exception) -> InvalidRequest:
        if isinstance(error, PermissionError):
            return InvalidRequest(f"the reservations in {self.path} are another user's: run vattd as that user")
        return InvalidRequest(
            f"the reservations in {self.path} cannot be read ({error}): mend the file, or move it away to start "
            "without them"
        )


def _parse(plain: Any) -> State:
    if not isinstance(plain, dict):
        raise TypeError("it holds no JSON object")
    if plain["version"] != VERSION:
        raise ValueError(f"version {plain['version']}, and this vattd knows {VERSION}")
    if type(plain["revision"]) is not int or plain["revision"] < 0:
        raise ValueError(f"revision {plain['revision']!r}")
    tenants = {name: Reservation.from_plain(one) for name, one in plain["tenants"].items()}
    return State(plain["revision"], tenants)
