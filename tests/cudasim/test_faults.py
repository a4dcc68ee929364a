"""Calls fail and stall where a test says, and nowhere else."""

import pytest

from .faults import FOR_EVER, STICKY
from .processes import Guest, run
from .world import CallCount, World

PAGE = 2 << 20

CREATES = """
ok(cu.cuInit(0))
say(" ".join(str(code(cu.cuMemCreate(PAGE, prop(), 0))) for _ in range(5)))
hear()
"""


@pytest.mark.parametrize(
    ("at", "times", "seen"), [(1, 1, "2 0 0 0 0"), (3, 2, "0 0 2 2 0"), (4, FOR_EVER, "0 0 0 2 2")]
)
def test_a_call_fails_at_its_nth_time_and_has_done_nothing(world: World, at: int, times: int, seen: str) -> None:
    world.faults.fail("OUT_OF_MEMORY", "cuMemCreate", at=at, times=times)
    with Guest(world, CREATES) as guest:
        assert guest.hear() == seen
        failed = seen.count("2")
        assert world.allocation_count() == 5 - failed
        assert world.counters()["cuMemCreate"] == CallCount(calls=5, injected=failed)
        assert world.faults.holdings(guest.pid).references == 5 - failed
    assert world.faults.clear() == (times == FOR_EVER)


def test_without_a_name_every_call_counts_that_needs_the_driver_to_be_initialized(world: World) -> None:
    world.faults.fail("NOT_PERMITTED", at=2)
    snippet = """
    ok(cu.cuInit(0))
    say([code(cu.cuDeviceGetCount()), code(cu.cuMemCreate(PAGE, prop(), 0)), code(cu.cuMemCreate(PAGE, prop(), 0))])
    """
    assert run(world, snippet).lines == ["[0, 800, 0]"]


def test_cu_init_fails_too_if_it_is_named(world: World) -> None:
    world.faults.fail("UNKNOWN", "cuInit")
    assert run(world, "say([code(cu.cuInit(0)), code(cu.cuInit(0))])").lines == ["[999, 0]"]


def test_a_fault_of_one_process_is_not_met_by_another(world: World) -> None:
    snippet = "ok(cu.cuInit(0)); say('ready'); hear(); say(code(cu.cuMemCreate(PAGE, prop(), 0))); hear()"
    with Guest(world, snippet) as one, Guest(world, snippet) as other:
        assert (one.hear(), other.hear()) == ("ready", "ready")
        world.faults.fail("INVALID_VALUE", pid=one.pid)
        other.say()
        assert other.hear() == "0"
        one.say()
        assert one.hear() == "1"
    assert world.refused() == 0


@pytest.mark.parametrize("code", sorted(STICKY))
def test_after_a_sticky_code_all_work_of_that_process_fails_with_it(world: World, code: str) -> None:
    snippet = """
    ok(cu.cuInit(0))
    h = create()
    results = [code(cu.cuMemRelease(h)), code(cu.cuMemCreate(PAGE, prop(), 0)), code(cu.cuDeviceGetCount())]
    say(len(set(results[:2])) == 1 and results[0] and results[2] == 0)
    hear()
    """
    world.faults.fail(code, "cuMemRelease")
    with Guest(world, snippet) as guest:
        assert guest.hear() == "True"
        assert world.allocation_count() == 1
    assert world.allocation_count() == world.refused() == 0
    assert run(world, "ok(cu.cuInit(0)); create()").returncode == 0


def test_a_sticky_code_ends_the_work_that_is_under_way(world: World) -> None:
    snippet = """
    from kernel import Reads, launch
    ok(cu.cuInit(0))
    enter_context()
    address = attach(reserve(PAGE), create())
    launch(0, Reads(address, PAGE), duration_s=3600)
    say(code(cu.cuMemUnmap(address, PAGE)))
    say(code(cu.cuCtxSynchronize()))
    """
    world.faults.fail("LAUNCH_FAILED", "cuMemUnmap")
    assert run(world, snippet).lines == ["719", "719"]


@pytest.mark.parametrize("code", ["", "ILLEGAL_ADDRESS"])
def test_a_call_stalls_until_it_is_released(world: World, code: str) -> None:
    world.faults.stall("cuMemCreate", at=2, code=code)
    with Guest(world, CREATES) as guest:
        world.faults.wait_for_stalled()
        assert world.allocation_count() == 1
        world.faults.release()
        assert guest.hear() == ("0 700 700 700 700" if code else "0 0 0 0 0")


def test_a_call_stalls_for_a_time(world: World) -> None:
    world.faults.stall("cuMemCreate", for_s=0.05)
    snippet = """
    ok(cu.cuInit(0))
    began_s = time.monotonic(); create()
    say(time.monotonic() - began_s >= 0.05)
    """
    assert run(world, snippet).lines == ["True"]


def test_holdings_are_what_a_process_has_not_given_back(world: World) -> None:
    snippet = """
    ok(cu.cuInit(0))
    address, h = reserve(4 * PAGE), create()
    attach(address, h)
    ok(cu.cuMemRelease(h))
    say("held"); hear()
    ok(cu.cuMemUnmap(address, PAGE))
    ok(cu.cuMemAddressFree(address, 4 * PAGE))
    say("free"); hear()
    """
    with Guest(world, snippet) as guest:
        guest.hear()
        held = world.faults.holdings(guest.pid)
        assert (held.handles, held.references, held.mappings) == (1, 0, 1)
        assert (held.reservations, held.reserved_bytes) == (1, 4 * PAGE)
        guest.say()
        guest.hear()
        assert set(vars_of(world.faults.holdings(guest.pid))) == {0}


def vars_of(holdings: object) -> list[int]:
    return [getattr(holdings, name) for name in ("handles", "references", "mappings", "reservations", "reserved_bytes")]
