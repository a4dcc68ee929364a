"""How many calls of each story were made to fail: with fewer, the faults would no longer reach the driver."""

from __future__ import annotations

from collections.abc import Mapping

from tests.vattention.vmm.rig import ON_CUDA

# On the host by code, where one that is left out fails no call of the story; on CUDA with each code. A change by which
# a story makes fewer calls says so here.
LEAST: Mapping[str, tuple[Mapping[str, int], int]] = {
    "opening_the_physical_half": ({}, 7),
    "creating": ({"ENOMEM": 2, "EMFILE": 1, "ENOSPC": 2, "EINTR": 1, "EPERM": 3}, 3),
    "scrubbing": ({"ENOMEM": 1, "ENOSPC": 1}, 10),
    "exporting": ({"EMFILE": 1}, 1),
    "asking_for_memory": ({"EPERM": 1}, 0),
    "opening_the_mapping_half": ({}, 7),
    "reserving": ({"ENOMEM": 2, "EPERM": 1}, 1),
    "freeing": ({"ENOMEM": 1}, 1),
    "importing": ({"EMFILE": 1, "EPERM": 2}, 3),
    "naming_zones": ({"EMFILE": 1}, 0),
    "mapping": ({"ENOMEM": 3, "EPERM": 2}, 4),
    "unmapping": ({"ENOMEM": 1, "EPERM": 1}, 1),
    "destroying": ({"ENOMEM": 1, "ENOSPC": 1, "EINTR": 1, "EPERM": 2}, 3),
    "releasing": ({}, 3),
    "closing": ({"ENOMEM": 3}, 15),
    "pool: leasing": ({"ENOMEM": 2, "EMFILE": 1, "ENOSPC": 2, "EINTR": 1, "EPERM": 3}, 15),
    "pool: leasing_what_another_tenant_had": ({"ENOMEM": 3, "EMFILE": 1, "ENOSPC": 3, "EINTR": 2, "EPERM": 5}, 10),
    "pool: exporting": ({"EMFILE": 3}, 3),
    "pool: shrinking": ({"ENOMEM": 1, "ENOSPC": 1, "EINTR": 1, "EPERM": 2}, 6),
    "pool: burying_a_session": ({"ENOMEM": 1, "ENOSPC": 1, "EINTR": 1, "EPERM": 2}, 3),
    "engine: leasing": ({"EMFILE": 1, "EPERM": 2}, 6),
    "engine: leasing_in_parts": ({"EMFILE": 1, "EPERM": 2}, 10),
    "engine: making_a_cache": ({"ENOMEM": 2, "EPERM": 1}, 1),
    "engine: growing": ({"ENOMEM": 4, "EPERM": 2}, 9),
    "engine: stepping": ({"ENOMEM": 8, "EPERM": 4}, 10),
    "engine: acquiring_and_growing_many": ({"ENOMEM": 8, "EPERM": 4}, 10),
    "engine: shrinking": ({"ENOMEM": 2, "EPERM": 2}, 1),
    "engine: letting_a_finished_slot_go": ({"ENOMEM": 2, "EPERM": 2}, 1),
    "engine: forking": ({"ENOMEM": 10, "EPERM": 6}, 8),
    "engine: admitting": ({"ENOMEM": 4, "EPERM": 2}, 9),
    "engine: closing": ({"ENOMEM": 3, "EPERM": 2}, 9),
    "journal: claim, sweep and end": ({"ENOSPC": 4}, 0),  # 5, where what is destroyed is not written at once
    "journal: first lease": ({"ENOSPC": 3}, 0),
    "vattd: leasing": ({}, 3),
    "vattd: growing": ({}, 4),
}


def check_reached(story: str, code: str, case_count: int) -> None:
    """So many of the story's calls failed with this code, one at a time."""
    on_host, on_cuda = LEAST[story]
    least = on_cuda if ON_CUDA else on_host.get(code, 0)
    assert case_count >= least, f"{case_count} calls of {story!r} failed with {code}, where {least} can at least"
