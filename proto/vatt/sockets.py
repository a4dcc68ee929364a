"""Where vattd's sockets are: one rule, read by the daemon, the library and vattctl.

A socket directory holds one folder a device (`host`, or the GPU's UUID) with three sockets in it.
"""

from __future__ import annotations

import os
import socket
import stat
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vatt.errors import DaemonUnreachable, InvalidRequest

SOCKET_DIR_VARIABLE = "VATTD_SOCKET_DIR"
SYSTEM_SOCKET_DIR = Path("/run/vattd")
# sun_path holds 108 bytes with its final NUL.
MAX_PATH_BYTES = 107


def make_directory(path: Path) -> None:
    """For sockets: open to all for root, whose engines may be any user's, else ours alone.

    Raises InvalidRequest for one in which another user could swap the sockets.
    """
    mode = 0o755 if os.geteuid() == 0 else 0o700
    try:
        for missing in reversed([folder for folder in (path, *path.parents) if not folder.exists()]):
            missing.mkdir(mode=mode, exist_ok=True)
            missing.chmod(mode)  # whatever the umask
    except OSError as error:
        raise InvalidRequest(f"cannot make {path} ({error.strerror}): choose another --socket-dir") from error
    check_directory(path, "--socket-dir")


def make_private_directory(path: Path) -> None:
    """For what only its owner may read. Raises InvalidRequest."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidRequest(f"cannot make {path} ({error.strerror}): choose another --state-dir") from error
    check_directory(path, "--state-dir")


def check_directory(path: Path, option: str) -> None:
    """Raises InvalidRequest unless the directory is ours or root's, and nobody else may write to it.

    `option` is where another one can be chosen."""
    facts = path.stat()
    others_write = facts.st_mode & 0o022 and not facts.st_mode & stat.S_ISVTX
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid not in (os.geteuid(), 0) or others_write:
        raise InvalidRequest(
            f"{path} is no safe place: it must be a directory of yours that no other user may write to (chmod go-w, or "
            f"choose another {option})"
        )


@dataclass(frozen=True, slots=True)
class Sockets:
    """The sockets of one device's vattd."""

    directory: Path

    def __post_init__(self) -> None:
        longest = str(self.handles)
        if len(os.fsencode(longest)) > MAX_PATH_BYTES:
            raise InvalidRequest(
                f"socket path {longest!r} is longer than the {MAX_PATH_BYTES} bytes that Linux allows: "
                f"choose a shorter --socket-dir or {SOCKET_DIR_VARIABLE}"
            )

    @property
    def device(self) -> str:
        """`host`, or the GPU's UUID."""
        return self.directory.name

    @property
    def journal(self) -> Path:
        """What a vattd knows of its sessions, for the next one."""
        return self.directory / "journal"

    @property
    def engine(self) -> Path:
        return self.directory / "engine.sock"

    @property
    def admin(self) -> Path:
        return self.directory / "admin.sock"

    @property
    def handles(self) -> Path:
        return self.directory / "handles.sock"

    @property
    def lock(self) -> Path:
        """Locked with flock by the vattd that owns these sockets; holds its pid."""
        return self.directory / "lock"


def _answers(sockets: Sockets) -> bool:
    """Does somebody listen? A vattd that was killed leaves its sockets behind."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(1.0)
        try:
            connection.connect(str(sockets.handles))
        except OSError:
            return False
    return True


def default_socket_dir(environ: Mapping[str, str]) -> Path:
    """The system's run directory for root, else the user's; VATTD_SOCKET_DIR comes before both."""
    chosen = environ.get(SOCKET_DIR_VARIABLE)
    if chosen:
        return Path(chosen)
    if os.geteuid() == 0:
        return SYSTEM_SOCKET_DIR
    runtime = environ.get("XDG_RUNTIME_DIR")
    if runtime:
        return Path(runtime) / "vattd"
    return Path(tempfile.gettempdir()) / f"vattd-{os.geteuid()}"


def start_command(sockets: Sockets, environ: Mapping[str, str] = os.environ) -> str:
    """What starts the vattd whose sockets these are. Where they are in the usual place, vattd goes there by itself."""
    place = sockets.directory.parent
    chosen = "" if place == default_socket_dir(environ) else f" --socket-dir {place}"
    return f"vattd start --gpu {sockets.device}{chosen}"


def search_dirs(environ: Mapping[str, str]) -> list[Path]:
    """Where a client looks, in order: in the chosen directory if one is chosen, else in the user's and the system's."""
    first = default_socket_dir(environ)
    if environ.get(SOCKET_DIR_VARIABLE) or first == SYSTEM_SOCKET_DIR:
        return [first]
    return [first, SYSTEM_SOCKET_DIR]


def find_daemons(socket_dirs: Sequence[Path], device: str | None = None) -> list[Sockets]:
    """The sockets of every vattd, or of every one for `device` (`host` or a GPU's UUID), directory by directory.

    A vattd that was killed leaves its sockets behind: to be found is not to be alive. A directory that another user
    could have put sockets in is passed over; if there is nothing elsewhere, it raises InvalidRequest.
    """
    found: list[Sockets] = []
    unsafe: InvalidRequest | None = None
    for directory in dict.fromkeys(socket_dirs):
        try:
            if directory.exists():
                check_directory(directory, "--socket-dir")
        except InvalidRequest as error:
            unsafe = error
            continue
        for engine in sorted(directory.glob("*/engine.sock")):
            if device in (None, engine.parent.name):
                found.append(Sockets(engine.parent))
    if unsafe is not None and not found:
        raise unsafe
    return found


def find_daemon(socket_dirs: Sequence[Path], device: str | None) -> Sockets:
    """For an engine: the vattd for `device`, or the only one there is. What comes first in `socket_dirs` is preferred.

    Raises DaemonUnreachable if there is none; InvalidRequest if there are several and `device` does not say which.
    """
    first: dict[str, Sockets] = {}
    for sockets in _running(find_daemons(socket_dirs, device)):
        first.setdefault(sockets.device, sockets)
    return _the_one(list(first.values()), socket_dirs, device, "say which device")


def find_only_daemon(socket_dirs: Sequence[Path], device: str | None) -> Sockets:
    """For who changes something: as `find_daemon`, but nothing is preferred, two for one device are several too."""
    found = _running(find_daemons(socket_dirs, device))
    differ = len({sockets.device for sockets in found}) == len(found)
    say = f"say which with {'--gpu' if differ else '--socket-dir'}"
    return _the_one(found, socket_dirs, device, say)


def _running(found: list[Sockets]) -> list[Sockets]:
    """Without what the killed left behind, if there is a choice."""
    return found if len(found) < 2 else [sockets for sockets in found if _answers(sockets)] or found


def _the_one(found: list[Sockets], socket_dirs: Sequence[Path], device: str | None, say: str) -> Sockets:
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(f"{sockets.device} in {sockets.directory.parent}" for sockets in found)
        raise InvalidRequest(f"several vattd run here ({names}): {say}")
    raise no_daemon(socket_dirs, device)


def no_daemon(socket_dirs: Sequence[Path], device: str | None) -> DaemonUnreachable:
    """Where none was found: what to type."""
    places = " or ".join(str(directory) for directory in socket_dirs)
    what, start = "no vattd", "vattd start"
    if device is not None:
        what, start = f"no vattd for {device}", f"vattd start --gpu {device}"
    if len(socket_dirs) == 1 and socket_dirs[0] != SYSTEM_SOCKET_DIR:  # somebody chose it: vattd must have it, too
        start += f" --socket-dir {socket_dirs[0]}"
    return DaemonUnreachable(
        f"{what} in {places}: start one with `{start}`, or set {SOCKET_DIR_VARIABLE} to its socket directory"
    )
