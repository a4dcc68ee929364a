"""How much memory this process could still take before the machine, or a cgroup above it, runs short."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from vatt.errors import OutOfMemory
from vattention.vmm.os_call import os_call

MIN_HEADROOM_BYTES = 256 << 20
HEADROOM_DIVISOR = 50  # 2 %

# cgroup v1 writes "no limit" as the largest page-aligned int64; anything as large means none.
_NO_LIMIT_BYTES = 1 << 62


@dataclass(frozen=True, slots=True)
class Room:
    """What one limit leaves. `available_bytes` counts file cache that the kernel would give up, and may be negative."""

    total_bytes: int
    available_bytes: int
    limit: str  # the machine's, or the file that holds it


@dataclass(frozen=True, slots=True)
class _CgroupFiles:
    """The names that the two cgroup versions give to the same facts."""

    limits: tuple[str, ...]
    usage: str
    reclaimable: str  # the line of memory.stat


_V1 = _CgroupFiles(("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file")
# memory.high is soft for the kernel, but above it every allocation is throttled: as good as a limit for a daemon.
_V2 = _CgroupFiles(("memory.max", "memory.high"), "memory.current", "inactive_file")


class HostMemory:
    """The memory available to this process: the least of MemAvailable and every cgroup from its own to the root.

    `root` stands for / so that tests can feed trees of their own. The cgroups are found once: a daemon is placed in
    its cgroup before it starts. Their numbers are read at each call.
    """

    def __init__(self, root: Path = Path("/"), headroom_bytes: int | None = None) -> None:
        self._meminfo = root / "proc" / "meminfo"
        self._cgroups = list(_memory_cgroups(root))
        self._headroom_bytes = headroom_bytes
        self._credit_bytes = 0

    def read(self) -> Room:
        """The tightest of all limits; its total is the smallest total of any. Raises SystemLimit, DriverError."""
        rooms = os_call("open", self._rooms)
        tightest = min(rooms, key=lambda room: room.available_bytes)
        return Room(min(room.total_bytes for room in rooms), tightest.available_bytes, tightest.limit)

    def _rooms(self) -> list[Room]:
        return [self._machine(), *(room for level, files in self._cgroups for room in _cgroup_rooms(level, files))]

    def headroom_of(self, total_bytes: int) -> int:
        """What is left alone for everything else that runs here."""
        if self._headroom_bytes is not None:
            return self._headroom_bytes
        return max(MIN_HEADROOM_BYTES, total_bytes // HEADROOM_DIVISOR)

    def require(self, size_bytes: int) -> None:
        """Raises OutOfMemory if taking this much would eat into the headroom.

        The check is ours because Linux overcommits: past the end of memory an allocation does not fail, the
        OOM killer ends a process, and vattd would be the largest.

        Reading takes longer than creating a small page, so one reading is good for a quarter of the headroom: if
        others take all the rest meanwhile, that quarter is all that we eat into it.
        """
        if size_bytes <= self._credit_bytes:
            self._credit_bytes -= size_bytes
            return
        room = self.read()
        headroom_bytes = self.headroom_of(room.total_bytes)
        spare_bytes = room.available_bytes - headroom_bytes - size_bytes
        if spare_bytes < 0:
            raise OutOfMemory(
                f"{size_bytes} bytes are wanted, {room.available_bytes} are available ({room.limit}) "
                f"and {headroom_bytes} of those are kept as headroom",
                call="fallocate",
                code="HEADROOM",
            )
        self._credit_bytes = min(spare_bytes, headroom_bytes // 4)

    def _machine(self) -> Room:
        kib: dict[str, int] = {}
        with self._meminfo.open("rb") as meminfo:
            for line in meminfo.read().decode().splitlines():
                name, _, value = line.partition(":")
                kib[name] = int(value.split()[0])
                if name == "MemAvailable":
                    break
        return Room(kib["MemTotal"] << 10, kib["MemAvailable"] << 10, "MemAvailable of /proc/meminfo")


def _memory_cgroups(root: Path) -> Iterator[tuple[Path, _CgroupFiles]]:
    """Every cgroup level whose memory limit holds for this process, its own first."""
    membership = root / "proc" / "self" / "cgroup"
    mounts = root / "sys" / "fs" / "cgroup"
    if not membership.exists():
        return
    for line in membership.read_text().splitlines():
        hierarchy, controllers, path = line.split(":", 2)
        if hierarchy == "0":
            # Beside v1 controllers ("hybrid"), systemd mounts the v2 tree one level down.
            mount = mounts / "unified" if (mounts / "unified").is_dir() else mounts
            yield from ((level, _V2) for level in _levels(mount, path))
        elif "memory" in controllers.split(","):
            yield from ((level, _V1) for level in _levels(mounts / "memory", path))


def _levels(mount: Path, path: str) -> Iterator[Path]:
    """The cgroup and all above it. In a container the path may be the host's, of which only the mount's top is seen."""
    parts = [part for part in PurePosixPath(path).parts if part not in ("/", "..")]
    for depth in range(len(parts), -1, -1):
        level = mount.joinpath(*parts[:depth])
        if level.is_dir():
            yield level


def _cgroup_rooms(level: Path, files: _CgroupFiles) -> Iterator[Room]:
    for name in files.limits:
        limit_bytes = _limit_of(level / name)
        if limit_bytes < _NO_LIMIT_BYTES:
            used_bytes = int((level / files.usage).read_text()) - _reclaimable_bytes(level, files)
            yield Room(limit_bytes, limit_bytes - used_bytes, str(level / name))


def _limit_of(file: Path) -> int:
    # The root has no limit files, and neither has a level at which the memory controller is off.
    text = file.read_text().strip() if file.exists() else "max"
    return _NO_LIMIT_BYTES if text == "max" else int(text)


def _reclaimable_bytes(level: Path, files: _CgroupFiles) -> int:
    for line in (level / "memory.stat").read_text().splitlines():
        name, _, value = line.partition(" ")
        if name == files.reclaimable:
            return int(value)
    return 0
