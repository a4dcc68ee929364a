"""Operating-system limits that pages run into, found before they are passed: mappings and file descriptors.

Past either limit, calls that have nothing to do with us fail too (a thread's stack, a socket), so we stop short of it.
"""

from __future__ import annotations

import os
import resource
from pathlib import Path

from vatt.errors import SystemLimit
from vattention.vmm.os_call import os_call

PROC = Path("/proc")

# Left to the rest of the process: thread stacks, malloc's arenas, libraries. An engine with torch has about 1,000.
SPARE_MAPPINGS = 2048


class MappingBudget:
    """How many more kernel mappings this process may make, as an upper bound on what it has.

    Invariant: the process's count, as far as our own calls change it, is never above `_bound`. Calls that merge
    mappings are not credited; instead /proc/self/maps is counted anew when the bound says that we may be near the
    limit. After a count with `n` left, `n` more are taken before the next one, so counting stays rare.
    """

    def __init__(self, proc: Path = PROC, spare: int = SPARE_MAPPINGS) -> None:
        self._maps = proc / "self" / "maps"
        self._limit_file = proc / "sys" / "vm" / "max_map_count"
        self._spare = spare
        self._refresh()

    def _refresh(self) -> None:
        self.limit = int(os_call("open", self._limit_file.read_text))
        self._bound = self.count()

    def count(self) -> int:
        """The kernel's own count, now. Takes milliseconds where there are tens of thousands."""
        return os_call("open", self._count)

    def _count(self) -> int:
        with self._maps.open("rb") as maps:
            return sum(block.count(b"\n") for block in iter(lambda: maps.read(1 << 20), b""))

    def require(self, mappings: int) -> None:
        """Make room for this many new mappings. Raises SystemLimit, and notes none, if there is not."""
        if self._bound + mappings > self._usable:
            self._refresh()
        if self._bound + mappings > self._usable:
            raise SystemLimit(
                f"vm.max_map_count is {self.limit}: this process has {self._bound} mappings, needs up to {mappings} "
                f"more and keeps {self.limit - self._usable} for the rest of it. Use larger pages, or raise it: "
                f"sysctl -w vm.max_map_count={self._advised(mappings)}",
            )
        self._bound += mappings

    def note(self, mappings: int) -> None:
        """Account for mappings that must be made whatever the limit says: those that lead to fewer later."""
        self._bound += mappings

    @property
    def _usable(self) -> int:
        return self.limit - min(self._spare, self.limit // 4)

    def _advised(self, mappings: int) -> int:
        wanted = 2 * max(self.limit, self._bound + mappings + self._spare)
        return 1 << (wanted - 1).bit_length()


def open_fd_count(proc: Path = PROC) -> int:
    fds = proc / "self" / "fd"
    # Since Linux 6.2 the directory's size is the count; before, it is 0 and they must be listed.
    return os_call("stat", fds.stat).st_size or len(os_call("open", os.listdir, fds))


def require_fds(fd_count: int, proc: Path = PROC) -> None:
    """Raises SystemLimit if `fd_count` more descriptors would pass RLIMIT_NOFILE."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return
    open_fds = open_fd_count(proc)
    if open_fds + fd_count > soft:
        raise SystemLimit(
            f"RLIMIT_NOFILE is {soft} (hard limit {hard}): {open_fds} descriptors are open and {fd_count} more are "
            f"needed. Raise it with `ulimit -n {_power_above(open_fds + fd_count)}`, "
            f"or LimitNOFILE= in the systemd unit",
        )


def raise_nofile_to_hard() -> int:
    """Lift the soft limit on descriptors to the hard one, as every daemon that holds many does. Returns it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def _power_above(count: int) -> int:
    return 1 << count.bit_length()
