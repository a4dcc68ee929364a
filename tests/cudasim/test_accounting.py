"""Device memory is one account for all processes, and each process pays for what it holds, however it ends."""

import signal

from .processes import Guest, run
from .world import MIB, World

PAGE = 2 * MIB

TAKE_ALL = """
ok(cu.cuInit(0))
pages = 0
while pages < {most} and code(result := cu.cuMemCreate(PAGE, prop(), 0)) != 2:
    ok(result)
    pages += 1
say(pages)
hear()
result = cu.cuMemCreate(PAGE, prop(), 0)
say(code(result))
hear()
"""


def test_two_processes_exhaust_one_device_together_and_a_killed_one_gives_its_share_back() -> None:
    with World(memory_bytes=64 * MIB) as world:
        with Guest(world, TAKE_ALL.format(most=20)) as first:
            assert first.hear() == "20"
            with Guest(world, TAKE_ALL.format(most=100)) as second:
                assert second.hear() == "12"
                assert world.used_bytes() == 64 * MIB
                second.say()
                assert second.hear() == "2"
                first.kill()
                assert run(world, "ok(cu.cuInit(0)); say(len([create() for _ in range(20)]))").lines == ["20"]
                assert world.used_bytes() == 24 * MIB
        assert world.used_bytes() == 0
        assert world.counters()["cuMemCreate"].exhausted == 2
        assert world.refused() == 0


def test_a_context_costs_memory_once_per_process_until_the_process_ends(world: World) -> None:
    snippet = """
    ok(cu.cuInit(0))
    enter_context(); enter_context()
    say(ok(cu.cuMemGetInfo()))
    ok(cu.cuDevicePrimaryCtxRelease(0)); ok(cu.cuDevicePrimaryCtxRelease(0))
    say("released")
    hear()
    """
    with Guest(world, snippet) as guest:
        assert guest.hear() == str((724 * MIB, 1024 * MIB))
        assert guest.hear() == "released"
        assert world.used_bytes() == 300 * MIB
    assert world.used_bytes() == 0


def test_a_context_that_does_not_fit_is_out_of_memory() -> None:
    with World(memory_bytes=299 * MIB) as world:
        assert run(world, "ok(cu.cuInit(0)); say(code(cu.cuDevicePrimaryCtxRetain(0)))").lines == ["2"]
        assert world.used_bytes() == 0


def test_a_daemon_without_a_context_holds_only_its_pages(world: World) -> None:
    snippet = "ok(cu.cuInit(0)); h = create(); attach(reserve(PAGE), h); export(h); say('done'); hear()"
    with Guest(world, snippet) as guest:
        assert guest.hear() == "done"
        assert world.used_bytes() == PAGE


def test_a_forked_child_pins_what_its_parent_held(world: World) -> None:
    snippet = """
    ok(cu.cuInit(0))
    h = create()
    pid = os.fork()
    if pid:
        say(pid)
        os.kill(os.getpid(), signal.SIGKILL)
    hear()
    say("child")
    """
    with Guest(world, snippet) as guest:
        guest.hear()
        assert guest.finish() == -signal.SIGKILL
        assert world.used_bytes() == PAGE
        guest.say()
        assert guest.hear() == "child"
        assert guest.hear() == ""
        wait_until_freed(world)


def test_a_forked_child_does_not_see_its_parents_mappings(world: World) -> None:
    snippet = """
    ok(cu.cuInit(0))
    address = attach(reserve(PAGE), create())
    ctypes.memset(address, 1, 1)
    pid = os.fork()
    if pid == 0:
        ctypes.string_at(address, 1)
        os._exit(0)
    say(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    """
    assert run(world, snippet).lines == [str(-signal.SIGSEGV)]


def test_handles_cost_no_descriptors(world: World) -> None:
    snippet = """
    import resource
    resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
    ok(cu.cuInit(0))
    r = reserve(400 * PAGE)
    for i in range(400):
        ok(cu.cuMemMap(r + i * PAGE, PAGE, 0, create(), 0))
    say(len(os.listdir("/proc/self/fd")) < 16)
    """
    assert run(world, snippet).lines == ["True"]


def test_a_program_that_closes_every_descriptor_still_holds_its_memory(world: World) -> None:
    with Guest(world, "ok(cu.cuInit(0)); h = create(); os.closerange(3, 1000); say('closed'); hear()") as guest:
        assert guest.hear() == "closed"
        assert world.used_bytes() == PAGE


def wait_until_freed(world: World) -> None:
    """A grandchild's end cannot be waited for: its pipe closes a moment before its memory goes."""
    for _ in range(10_000):
        if world.used_bytes() == 0:
            return
    raise AssertionError("still held")
