"""Limits of processes that run into them: as this shell has them, which starts vattd or an engine."""

from __future__ import annotations

from vatt.sizes import format_size
from vattctl.doctor.facts import UNLIMITED, Daemon, Facts
from vattctl.doctor.finding import Finding, broken, note, ok, warning
from vattention.vmm import host_page_size_bytes
from vattention.vmm.limits import SPARE_MAPPINGS

# vattd lets a user have a quarter of its descriptors as connections, and 2,048 at most.
ENOUGH_FILES = 8192
# An engine takes 253 descriptors at a time, beside those that it has.
FEWEST_FILES = 512
# One mapping in the engine covers at least so many pages of host memory (measured: three to five, layout per_layer).
PAGES_A_MAPPING = 3
USUAL_POOL_PERCENT = 50
# Address ranges are as long as all slots at their full contexts.
LEAST_ADDRESS_SPACE_BYTES = 1 << 44
# A slab is a sparse file of many TiB.
LEAST_FILE_BYTES = 1 << 50


def open_files(facts: Facts) -> Finding:
    """vattd lifts the soft limit to the hard one by itself; engines have the soft one."""
    soft, hard = facts.limits.nofile_soft, facts.limits.nofile_hard
    if hard < FEWEST_FILES or soft < FEWEST_FILES:
        words = f"{soft:,} descriptors a process (at most {hard:,}): an engine takes 253 at a time to map pages"
        own = [f"ulimit -n {min(hard, ENOUGH_FILES)}"] if hard >= FEWEST_FILES else [_lifted(f"nofile={ENOUGH_FILES}")]
        in_unit = f"LimitNOFILE={ENOUGH_FILES}   # systemd unit"
        in_container = f"docker run --ulimit nofile={ENOUGH_FILES} ..."
        return broken("open-files", words, *own, in_container if facts.container.kind else in_unit)
    if hard < ENOUGH_FILES:
        words = f"{hard:,} descriptors a process: a vattd from this shell lets a user have {hard // 4:,} connections"
        return warning("open-files", words, f"LimitNOFILE={ENOUGH_FILES}   # in the systemd unit of vattd")
    return ok("open-files", f"{_count(soft)} descriptors a process, for vattd {_count(hard)}")


def vattd_open_files(facts: Facts, daemon: Daemon) -> Finding:
    if not daemon.nofile:
        return note("vattd-files", "how many descriptors it may have is hidden from this user", subject=daemon.subject)
    if daemon.nofile >= ENOUGH_FILES:
        return ok("vattd-files", f"{_count(daemon.nofile)} descriptors", daemon.subject)
    words = f"vattd has {daemon.nofile:,} descriptors, so a user may have {daemon.nofile // 4:,} connections"
    fix = f"LimitNOFILE={ENOUGH_FILES}   # in its systemd unit; then systemctl daemon-reload, and restart it"
    return warning("vattd-files", words, fix, subject=daemon.subject)


def locked_memory(facts: Facts) -> Finding:
    """vattd and the library lock none, but who sends KV over InfiniBand does."""
    size = facts.limits.memlock_bytes
    words = "unlimited" if size >= UNLIMITED else format_size(size)
    if size >= UNLIMITED or not facts.hardware.has_rdma:
        return ok("memlock", f"{words}; vattd locks none")
    fix = "docker run --ulimit memlock=-1 ..." if facts.container.kind else "LimitMEMLOCK=infinity   # systemd unit"
    words = f"{words} of memory may be locked, and there is RDMA here: NCCL over it needs more"
    return warning("memlock", words, _lifted("memlock=unlimited"), fix)


def address_space(facts: Facts) -> Finding:
    size = facts.limits.address_space_bytes
    if size >= LEAST_ADDRESS_SPACE_BYTES:
        return ok("address-space", "unlimited" if size >= UNLIMITED else format_size(size))
    words = f"{format_size(size)} of addresses a process: a KV cache takes them for all slots at their full contexts"
    return broken("address-space", words, _lifted("as=unlimited"), "LimitAS=infinity   # systemd unit")


def file_size(facts: Facts) -> Finding:
    size = facts.limits.file_bytes
    if size >= LEAST_FILE_BYTES:
        return ok("file-size", "unlimited" if size >= UNLIMITED else format_size(size))
    words = f"files of {format_size(size)} at most, and host memory is lent from a sparse file of many TiB"
    fixes = [_lifted("fsize=unlimited"), "LimitFSIZE=infinity   # systemd unit"]
    return (broken if facts.uses_host_memory else note)("file-size", words, *fixes)


def mappings(facts: Facts) -> Finding:
    """One engine may come to map all of a host pool."""
    limit = facts.limits.max_map_count
    if not facts.uses_host_memory:
        return ok("max-map-count", f"{limit:,}; pages of GPUs take none")
    page_count, page_bytes = _largest_host_pool(facts)
    needed = page_count // PAGES_A_MAPPING + SPARE_MAPPINGS
    words = f"{limit:,} mappings a process; {page_count:,} pages of {format_size(page_bytes)} may take {needed:,}"
    if needed <= limit:
        return ok("max-map-count", words)
    larger = page_bytes
    while page_count * page_bytes // larger // PAGES_A_MAPPING + SPARE_MAPPINGS > limit:
        larger *= 2
    return warning(
        "max-map-count",
        words,
        f"sudo sysctl -w vm.max_map_count={1 << (needed - 1).bit_length()}",
        f"vattd start --gpu host --page-size {larger >> 10}KiB",
    )


def _largest_host_pool(facts: Facts) -> tuple[int, int]:
    """Pages and their size: of those that run, else as vattd would make it."""
    pools = [one.status for one in facts.daemons if one.status is not None and one.status.backend == "host"]
    if pools:
        largest = max(pools, key=lambda pool: pool.max_bytes // pool.page_size_bytes)
        return largest.max_bytes // largest.page_size_bytes, largest.page_size_bytes
    pool_bytes = facts.memory.total_bytes * USUAL_POOL_PERCENT // 100
    page_size_bytes = host_page_size_bytes(pool_bytes)
    return pool_bytes // page_size_bytes, page_size_bytes


def overcommit(facts: Facts) -> Finding:
    mode = facts.limits.overcommit_mode
    if mode != 2:
        return ok("overcommit", f"vm.overcommit_memory is {mode}")
    left = max(0, facts.limits.commit_left_bytes)
    words = f"vm.overcommit_memory is 2: {format_size(left)} can still be promised, whatever memory is free"
    return warning("overcommit", words, "sudo sysctl -w vm.overcommit_memory=0")


def _lifted(limit: str) -> str:
    """For this shell and what it starts. `ulimit` lifts none above what is the most, which is mostly as low."""
    return f"sudo prlimit --pid $$ --{limit}"


def _count(number: int) -> str:
    return "no limit of" if number >= UNLIMITED else f"{number:,}"
