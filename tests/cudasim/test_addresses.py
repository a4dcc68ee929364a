"""Addresses behave as a GPU's do, and touching what is not there is a real fault."""

import signal

import pytest

from .processes import run
from .world import MIB, World

PAGE = 2 * MIB


def test_terabytes_of_addresses_cost_no_memory(world: World) -> None:
    snippet = """
    ok(cu.cuInit(0))
    r = reserve(12 << 40)
    last = r + (12 << 40) - PAGE
    for address in (r, last):
        attach(address, create())
        ctypes.memset(address, 5, PAGE)
    say(ctypes.string_at(last + PAGE - 1, 1))
    ok(cu.cuMemUnmap(r, PAGE)); ok(cu.cuMemUnmap(last, PAGE))
    ok(cu.cuMemAddressFree(r, 12 << 40))
    """
    assert run(world, snippet).lines == [r"b'\x05'"]


@pytest.mark.parametrize("alignment", [0, 4096, PAGE, 1 << 30])
def test_reservations_are_aligned_to_the_granularity_and_as_asked(world: World, alignment: int) -> None:
    snippet = f"""
    ok(cu.cuInit(0))
    for size in (4096, PAGE + 4096, 3 * PAGE):
        assert int(ok(cu.cuMemAddressReserve(size, {alignment}, 0, 0))) % max(PAGE, {alignment}) == 0
    """
    assert run(world, snippet).lines == []


def test_a_hint_is_taken_where_it_is_free_and_else_ignored(world: World) -> None:
    snippet = """
    ok(cu.cuInit(0))
    hint = 1 << 44
    first, second = (int(ok(cu.cuMemAddressReserve(PAGE, 0, hint, 0))) for _ in range(2))
    say(first == hint != second)
    """
    assert run(world, snippet).lines == ["True"]


FAULTS = {
    "reading a reservation": "ctypes.string_at(r + PAGE, 1)",
    "reading what is mapped without access": "ok(cu.cuMemMap(r + PAGE, PAGE, 0, h, 0)); ctypes.string_at(r + PAGE, 1)",
    "writing what is read-only": "attach(r + PAGE, h, flags=READ); ctypes.memset(r + PAGE, 0, 1)",
    "reading after access is taken away":
        "ok(cu.cuMemSetAccess(r, PAGE, [access(NONE)], 1)); ctypes.string_at(r, 1)",
    "reading after unmap": "ok(cu.cuMemUnmap(r, PAGE)); ctypes.string_at(r, 1)",
    "reading after a remap":
        "ok(cu.cuMemUnmap(r, PAGE)); ok(cu.cuMemMap(r, PAGE, 0, h, 0)); ctypes.string_at(r, 1)",
    "reading after the reservation is freed":
        "ok(cu.cuMemUnmap(r, PAGE)); ok(cu.cuMemAddressFree(r, 4 * PAGE)); ctypes.string_at(r, 1)",
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_the_process_dies_of(world: World, fault: str) -> None:
    setup = "ok(cu.cuInit(0)); h = create(); r = reserve(4 * PAGE); attach(r, h); ctypes.memset(r, 1, PAGE)\n"
    outcome = run(world, setup + "say('alive')\n" + FAULTS[fault])
    assert (outcome.stdout, outcome.returncode) == ("alive\n", -signal.SIGSEGV)


def test_read_only_memory_can_be_read(world: World) -> None:
    snippet = """
    ok(cu.cuInit(0)); enter_context()
    h = create(); r = reserve(2 * PAGE)
    attach(r, h); attach(r + PAGE, h, flags=READ)
    ok(cu.cuMemsetD8(r, 9, PAGE))
    back = bytearray(4)
    ok(cu.cuMemcpyDtoH(back, r + PAGE + 100, 4))
    ok(cu.cuMemcpyHtoD(r, b"abcd", 4))
    say(back); say(ctypes.string_at(r + PAGE, 5))
    say([int(ok(cu.cuMemGetAccess(access().location, r + i * PAGE))) for i in range(2)])
    """
    assert run(world, snippet).lines == [r"bytearray(b'\t\t\t\t')", r"b'abcd\t'", "[3, 1]"]


def test_one_set_access_and_one_unmap_cover_a_run_of_mappings(world: World) -> None:
    snippet = """
    ok(cu.cuInit(0))
    r = reserve(64 * PAGE)
    sizes = [1, 4, 2, 1, 8]
    at = r + PAGE
    for size in sizes:
        ok(cu.cuMemMap(at, size * PAGE, 0, create(size * PAGE), 0))
        at += size * PAGE
    ok(cu.cuMemSetAccess(r + PAGE, sum(sizes) * PAGE, [access()], 1))
    ctypes.memset(r + PAGE, 1, sum(sizes) * PAGE)
    ok(cu.cuMemUnmap(r + PAGE, 5 * PAGE))
    ok(cu.cuMemUnmap(r + 6 * PAGE, 11 * PAGE))
    ok(cu.cuMemAddressFree(r, 64 * PAGE))
    """
    assert run(world, snippet).lines == []
    assert world.counters()["cuMemSetAccess"].calls == world.refused() + 1 == 1


def test_one_page_at_many_addresses_is_one_memory(world: World) -> None:
    snippet = """
    ok(cu.cuInit(0))
    h = create(); r = reserve(100 * PAGE)
    for i in range(100):
        ok(cu.cuMemMap(r + i * PAGE, PAGE, 0, h, 0))
    ok(cu.cuMemSetAccess(r, 100 * PAGE, [access()], 1))
    ctypes.memset(r + 50 * PAGE, 7, 1)
    say({ctypes.string_at(r + i * PAGE, 1) for i in range(100)})
    """
    assert run(world, snippet).lines == [r"{b'\x07'}"]


def test_a_page_keeps_its_bytes_when_it_moves(world: World) -> None:
    snippet = """
    ok(cu.cuInit(0))
    h = create(); r = reserve(2 * PAGE)
    ctypes.memset(attach(r, h), 3, PAGE)
    ok(cu.cuMemUnmap(r, PAGE))
    say(ctypes.string_at(attach(r + PAGE, h) + PAGE - 2, 2))
    """
    assert run(world, snippet).lines == [r"b'\x03\x03'"]


def test_running_out_of_kernel_mappings_is_out_of_memory_and_changes_nothing() -> None:
    with World(granularity_bytes=4096, memory_bytes=1024 * MIB) as world:
        snippet = """
        limit = int(open("/proc/sys/vm/max_map_count").read())
        ok(cu.cuInit(0))
        h = create(4096); r = reserve((limit + 10) * 4096)
        count = 0
        while code(result := cu.cuMemMap(r + count * 4096, 4096, 0, h, 0)) == 0:
            count += 1
        say(code(result))
        say(0 < limit - count < 2000)
        ok(cu.cuMemSetAccess(r, count * 4096, [access()], 1))
        say(code(cu.cuMemSetAccess(r, (count + 1) * 4096, [access()], 1)))
        ok(cu.cuMemUnmap(r, count * 4096))
        attach(r + count * 4096, h, 4096)
        """
        outcome = run(world, snippet)
        assert outcome.lines == ["2", "True", "1"]


def test_an_address_tells_what_it_is(world: World) -> None:
    snippet = """
    ok(cu.cuInit(0))
    r = reserve(4 * PAGE)
    attach(r + PAGE, create(2 * PAGE), 2 * PAGE, READ)
    A = cu.CUpointer_attribute
    def tell(name, address):
        value = ok(cu.cuPointerGetAttribute(getattr(A, "CU_POINTER_ATTRIBUTE_" + name), address))
        return int(value) - (r if name.endswith("ADDR") or name == "DEVICE_POINTER" else 0)
    page = r + 2 * PAGE
    say({name: tell(name, page) for name in ("MEMORY_TYPE", "DEVICE_ORDINAL", "MAPPED", "IS_MANAGED", "DEVICE_POINTER",
        "ALLOWED_HANDLE_TYPES", "IS_LEGACY_CUDA_IPC_CAPABLE")})
    say([tell("RANGE_START_ADDR", page), tell("RANGE_SIZE", page)])
    say([tell("RANGE_START_ADDR", r), tell("RANGE_SIZE", r), tell("MAPPED", r)])
    kinds = [A.CU_POINTER_ATTRIBUTE_MEMORY_TYPE, A.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL]
    say([int(value) for value in ok(cu.cuPointerGetAttributes(2, kinds, r))])
    say([int(value) for value in ok(cu.cuPointerGetAttributes(2, kinds, page))])
    """
    lines = run(world, snippet).lines
    assert lines[0] == str(
        {
            "MEMORY_TYPE": 2,
            "DEVICE_ORDINAL": 0,
            "MAPPED": 1,
            "IS_MANAGED": 0,
            "DEVICE_POINTER": 2 * PAGE,
            "ALLOWED_HANDLE_TYPES": 1,
            "IS_LEGACY_CUDA_IPC_CAPABLE": 0,
        }
    )
    assert lines[1:] == [str([0, 4 * PAGE]), str([0, 4 * PAGE, 0]), "[0, 0]", "[2, 0]"]
