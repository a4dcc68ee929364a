"""The host's memory."""

from __future__ import annotations

from vatt.sizes import format_size
from vattctl.doctor.facts import Facts
from vattctl.doctor.finding import Finding, broken, note, ok, warning

HUGE_PAGE_BYTES = 2 << 20
# Ranks of one vLLM talk over it; a container has 64 MiB if nobody asks for more.
LEAST_SHM_BYTES = 1 << 30


def host_memory(facts: Facts) -> Finding:
    memory = facts.memory
    spare_bytes = memory.available_bytes - memory.headroom_bytes
    words = f"{format_size(max(0, memory.available_bytes))} available of {format_size(memory.total_bytes)}"
    if spare_bytes <= 0 and facts.uses_host_memory:
        words += f" ({memory.limit}), and vattd leaves {format_size(memory.headroom_bytes)} of it to others"
        return broken("host-memory", f"no page can be made: {words}", "ps aux --sort=-rss | head", *_more(facts))
    if memory.total_bytes < memory.machine_bytes:
        words += f"; the machine has {format_size(memory.machine_bytes)}, and {memory.limit} allows no more"
        return note("host-memory", words, *_more(facts))
    return ok("host-memory", words)


def _more(facts: Facts) -> list[str]:
    """Where a control group sets the limit."""
    if facts.memory.total_bytes >= facts.memory.machine_bytes:
        return []
    return ["docker run --memory=... ...", "MemoryMax=   # systemd unit"]


def swap(facts: Facts) -> Finding:
    memory = facts.memory
    if not memory.swap_bytes:
        return ok("swap", "none")
    words = f"{format_size(memory.swap_bytes)} of swap, {format_size(memory.swap_used_bytes)} used"
    if not facts.uses_host_memory:
        return ok("swap", f"{words}; pages of GPUs are never swapped")
    fixes = ["MemorySwapMax=0   # systemd unit of vattd", "vattd start --gpu host --huge-pages"]
    words += ": pages of host memory may be swapped out, and engines then wait for the disk"
    return (warning if memory.swap_used_bytes else note)("swap", words, *fixes)


def huge_pages(facts: Facts) -> Finding:
    count, free = facts.memory.huge_pages, facts.memory.huge_pages_free
    if not count:
        return ok("huge-pages", "none are set aside; only vattd start --huge-pages needs them")
    words = f"{free:,} of {count:,} (2 MiB each) are free"
    if not facts.uses_host_memory:
        return ok("huge-pages", words)
    if not free:
        fix = f"sudo sysctl -w vm.nr_hugepages={2 * count}"
        return note("huge-pages", f"{words}: a vattd with --huge-pages could make no page", fix)
    return ok("huge-pages", words)


def shared_memory(facts: Facts) -> Finding:
    """Pages of ours are not in it, but vLLM is."""
    size = facts.memory.shm_bytes
    words = f"/dev/shm has {format_size(size)}"
    if size >= LEAST_SHM_BYTES or not facts.software.vllm.version:
        return ok("shm", f"{words}; vattd needs none of it")
    fix = "docker run --shm-size=8g ..." if facts.container.kind else "sudo mount -o remount,size=8g /dev/shm"
    return warning("shm", f"{words}, over which vLLM's ranks talk", fix)
