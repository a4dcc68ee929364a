"""Streams order work, events tell when it is done, and memory that work uses must be left to it."""

import signal
import socket
import textwrap

import pytest

from .processes import Guest, Outcome, run
from .world import MIB, World

PAGE = 2 * MIB

# Every snippet starts with this: a context, two streams that know nothing of the NULL stream, one that does, and four
# pages at `r`. A kernel is long enough here for whatever comes after its launch, and short enough to be waited for.
SETUP = """
from kernel import *
ok(cu.cuInit(0)); enter_context()
context = ok(cu.cuCtxGetCurrent())
def stream(flags): return int(ok(cu.cuStreamCreate(int(flags))))
def event(flags=cu.CUevent_flags.CU_EVENT_DISABLE_TIMING): return ok(cu.cuEventCreate(int(flags)))
NON_BLOCKING, DEFAULT = cu.CUstream_flags.CU_STREAM_NON_BLOCKING, cu.CUstream_flags.CU_STREAM_DEFAULT
one, other, blocking = stream(NON_BLOCKING), stream(NON_BLOCKING), stream(DEFAULT)
r = reserve(4 * PAGE)
pages = [attach(r + i * PAGE, create()) for i in range(4)]
def byte(place): return ctypes.string_at(pages[place], 1)[0]
def busy(s): return code(cu.cuStreamQuery(s)) == 600
LONG = 0.2
FOREVER = 1e6
"""


def run_streams(world: World, snippet: str) -> Outcome:
    return run(world, SETUP + textwrap.dedent(snippet))


def holds(world: World, snippet: str) -> None:
    """The snippet's assertions hold, and nothing that it did was refused."""
    assert run_streams(world, snippet).lines == []
    assert world.refused() == 0


# ---- order ----


def test_a_launch_returns_at_once_and_a_wait_for_its_stream_when_it_is_done(world: World) -> None:
    snippet = """
    began = time.monotonic()
    launch(one, Writes(pages[0], PAGE), duration_s=LONG)
    assert busy(one) and time.monotonic() - began < LONG
    ok(cu.cuStreamSynchronize(one))
    assert not busy(one) and time.monotonic() - began >= LONG
    assert ctypes.string_at(pages[0], PAGE) == bytes([0x5A]) * PAGE
    """
    holds(world, snippet)


def test_a_kernel_sleeps_rather_than_computes(world: World) -> None:
    snippet = """
    began = time.process_time()
    launch(one, Reads(pages[0], PAGE), duration_s=3 * LONG)
    ok(cu.cuStreamSynchronize(one))
    assert time.process_time() - began < LONG
    """
    holds(world, snippet)


def test_work_in_one_stream_is_done_in_order(world: World) -> None:
    snippet = """
    for number in range(5):
        launch(one, Writes(pages[0], PAGE, byte=number), duration_s=0.01)
        ok(cu.cuMemcpyDtoDAsync(pages[1] + number, pages[0], 1, one))
    ok(cu.cuMemsetD8Async(pages[0], 9, PAGE, one))
    assert busy(one)
    ok(cu.cuStreamSynchronize(one))
    assert ctypes.string_at(pages[1], 5) == bytes(range(5)) and byte(0) == 9
    """
    holds(world, snippet)


def test_streams_do_not_wait_for_each_other(world: World) -> None:
    snippet = """
    launch(one, Reads(pages[0], PAGE), duration_s=FOREVER)
    launch(other, Writes(pages[1], PAGE), duration_s=0.01)
    ok(cu.cuStreamSynchronize(other))
    assert byte(1) == 0x5A and busy(one)
    """
    holds(world, snippet)


def test_a_stream_waits_for_another_ones_event_and_for_nothing_after_it(world: World) -> None:
    snippet = """
    e = event()
    launch(one, Writes(pages[0], PAGE, byte=1), duration_s=LONG)
    ok(cu.cuEventRecord(e, one))
    launch(one, Reads(pages[2], PAGE), duration_s=FOREVER)
    ok(cu.cuStreamWaitEvent(other, e, 0))
    ok(cu.cuEventRecord(e, one))  # recording anew changes nothing for who waits already
    ok(cu.cuMemcpyDtoDAsync(pages[1], pages[0], 1, other))
    assert busy(other) and byte(1) == 0
    ok(cu.cuStreamSynchronize(other))
    assert byte(1) == 1 and busy(one)
    """
    holds(world, snippet)


def test_the_null_stream_and_blocking_streams_wait_for_each_other(world: World) -> None:
    snippet = """
    launch(blocking, Writes(pages[0], PAGE, byte=1), duration_s=LONG)
    ok(cu.cuMemcpyDtoD(pages[1], pages[0], 1))
    launch(0, Reads(pages[1], PAGE), duration_s=LONG)
    ok(cu.cuMemcpyDtoDAsync(pages[2], pages[1], 1, blocking))
    assert busy(blocking) and busy(0) and byte(1) == 0
    began = time.monotonic()
    ok(cu.cuStreamSynchronize(blocking))
    assert byte(2) == 1 and not busy(0) and time.monotonic() - began >= LONG
    """
    holds(world, snippet)


def test_the_null_stream_is_busy_while_a_blocking_stream_is(world: World) -> None:
    snippet = """
    launch(blocking, Reads(pages[0], PAGE), duration_s=LONG)
    assert busy(0) and busy(1)
    ok(cu.cuStreamSynchronize(0))
    assert not busy(blocking)
    ok(cu.cuMemUnmap(pages[0], PAGE))
    """
    holds(world, snippet)


def test_the_null_stream_and_non_blocking_streams_know_nothing_of_each_other(world: World) -> None:
    snippet = """
    launch(one, Reads(pages[0], PAGE), duration_s=FOREVER)
    ok(cu.cuMemsetD8(pages[1], 1, PAGE))
    ok(cu.cuStreamSynchronize(0))
    assert byte(1) == 1 and busy(one) and not busy(0)
    launch(0, Reads(pages[2], PAGE), duration_s=FOREVER)
    ok(cu.cuMemsetD8Async(pages[3], 1, PAGE, other))
    ok(cu.cuStreamSynchronize(other))
    assert byte(3) == 1 and busy(0)
    """
    holds(world, snippet)


def test_copies_to_and_from_the_host_wait_for_the_null_stream_and_fills_wait_for_nothing(world: World) -> None:
    snippet = """
    launch(0, Writes(pages[0], PAGE, byte=7), duration_s=LONG)
    began = time.monotonic()
    ok(cu.cuMemsetD8(pages[1], 8, PAGE))
    assert time.monotonic() - began < LONG and byte(1) == 0
    back = bytearray(1)
    ok(cu.cuMemcpyDtoH(back, pages[0], 1))
    assert back == b"\\7" and time.monotonic() - began > LONG / 2 and byte(1) == 8
    """
    holds(world, snippet)


def test_a_stream_that_is_destroyed_finishes_its_work_and_the_context_still_waits_for_it(world: World) -> None:
    snippet = """
    began = time.monotonic()
    launch(one, Writes(pages[0], PAGE), duration_s=LONG)
    launch(blocking, Writes(pages[1], PAGE), duration_s=LONG)
    for s in (one, blocking): ok(cu.cuStreamDestroy(s))
    assert time.monotonic() - began < LONG and busy(0)
    ok(cu.cuCtxSynchronize())
    assert byte(0) == byte(1) == 0x5A and time.monotonic() - began >= LONG
    ok(cu.cuMemUnmap(r, 2 * PAGE))
    """
    holds(world, snippet)


def test_a_process_ends_with_work_on_the_device(world: World) -> None:
    assert run_streams(world, "launch(one, Reads(pages[0], PAGE), duration_s=FOREVER)").returncode == 0
    assert (world.used_bytes(), world.refused()) == (0, 0)


def test_the_context_waits_for_its_work_when_it_is_released(world: World) -> None:
    snippet = """
    launch(one, Writes(pages[0], PAGE), duration_s=LONG)
    ok(cu.cuDevicePrimaryCtxRelease(0))
    assert byte(0) == 0x5A
    ok(cu.cuMemUnmap(pages[0], PAGE))
    """
    holds(world, snippet)


# ---- events ----


def test_an_event_that_was_never_recorded_is_done(world: World) -> None:
    snippet = """
    launch(one, Reads(pages[0], PAGE), duration_s=FOREVER)
    e = event()
    ok(cu.cuEventQuery(e)); ok(cu.cuEventSynchronize(e))
    ok(cu.cuStreamWaitEvent(other, e, 0))
    ok(cu.cuStreamSynchronize(other))
    ok(cu.cuEventDestroy(e))
    """
    holds(world, snippet)


def test_an_event_is_done_when_what_was_before_it_in_its_stream_is(world: World) -> None:
    snippet = """
    e = event()
    launch(one, Writes(pages[0], PAGE), duration_s=LONG)
    ok(cu.cuEventRecord(e, one))
    launch(one, Reads(pages[1], PAGE), duration_s=FOREVER)
    assert code(cu.cuEventQuery(e)) == 600
    ok(cu.cuEventSynchronize(e))
    ok(cu.cuEventQuery(e))
    assert byte(0) == 0x5A and busy(one)
    """
    holds(world, snippet)


def test_recording_an_event_anew_replaces_what_it_stood_for(world: World) -> None:
    snippet = """
    e = event()
    launch(one, Reads(pages[0], PAGE), duration_s=FOREVER)
    ok(cu.cuEventRecord(e, one))
    assert code(cu.cuEventQuery(e)) == 600
    ok(cu.cuEventRecord(e, other))
    ok(cu.cuEventSynchronize(e))
    """
    holds(world, snippet)


def test_an_event_of_the_context_stands_for_all_its_streams(world: World) -> None:
    snippet = """
    for place, s in enumerate([one, other, blocking, 0]):
        e = event()
        launch(s, Writes(pages[place], PAGE), duration_s=LONG)
        ok(cu.cuCtxRecordEvent(context, e))
        assert code(cu.cuEventQuery(e)) == 600
        ok(cu.cuEventSynchronize(e))
        assert byte(place) == 0x5A and not busy(s)
    ok(cu.cuMemUnmap(r, 4 * PAGE))
    """
    holds(world, snippet)


def test_an_event_of_the_context_stands_for_nothing_that_comes_later(world: World) -> None:
    snippet = """
    e = event()
    launch(one, Reads(pages[0], PAGE), duration_s=0.01)
    ok(cu.cuCtxRecordEvent(context, e))
    launch(one, Reads(pages[0], PAGE), duration_s=FOREVER)
    ok(cu.cuEventSynchronize(e))
    assert busy(one)
    """
    holds(world, snippet)


def test_the_context_waits_for_all_streams(world: World) -> None:
    snippet = """
    for place, s in enumerate([one, other, blocking]):
        launch(s, Writes(pages[place], PAGE), duration_s=LONG)
    ok(cu.cuCtxSynchronize())
    assert [byte(place) for place in range(3)] == [0x5A] * 3
    """
    holds(world, snippet)


def test_an_event_may_be_destroyed_before_it_is_done_and_who_waits_for_it_still_does(world: World) -> None:
    snippet = """
    e = event()
    launch(one, Writes(pages[0], PAGE), duration_s=LONG)
    ok(cu.cuEventRecord(e, one))
    ok(cu.cuStreamWaitEvent(other, e, 0))
    ok(cu.cuEventDestroy(e))
    ok(cu.cuMemcpyDtoDAsync(pages[1], pages[0], 1, other))
    assert busy(other) and byte(1) == 0
    ok(cu.cuStreamSynchronize(other))
    assert byte(1) == 0x5A
    """
    holds(world, snippet)


def test_the_time_between_two_events_is_that_of_the_kernel_between_them(world: World) -> None:
    snippet = """
    first, last = event(0), event(0)
    ok(cu.cuEventRecord(first, one))
    launch(one, Reads(pages[0], PAGE), duration_s=LONG)
    ok(cu.cuEventRecord(last, one))
    assert code(cu.cuEventElapsedTime(first, last)) == 600
    ok(cu.cuEventSynchronize(last))
    assert LONG * 1000 <= ok(cu.cuEventElapsedTime(first, last)) < LONG * 1000 + 150
    """
    holds(world, snippet)


def test_events_and_streams_of_another_context_do_not_mix() -> None:
    with World(devices=2) as world:
        snippet = """
        here = event()
        enter_context(1)
        there, e = stream(DEFAULT), event()
        say([code(answer) for answer in (
            cu.cuEventRecord(e, one), cu.cuEventRecord(here, there), cu.cuCtxRecordEvent(context, e),
            cu.cuMemsetD8Async(r, 0, 1, one))])
        say(try_launch(one, Reads(r, PAGE)))
        ok(cu.cuEventRecord(here, one)); ok(cu.cuStreamWaitEvent(there, here, 0))
        """
        assert run_streams(world, snippet).lines == ["[400, 400, 400, 400]", "400"]


def test_work_of_one_device_does_not_mind_what_another_may_access() -> None:
    with World(devices=2) as world:
        snippet = """
        ok(cu.cuMemSetAccess(r, PAGE, [access(READ, 1)], 1))
        launch(one, Reads(r, PAGE), duration_s=FOREVER)
        ok(cu.cuMemSetAccess(r, PAGE, [access(NONE, 1)], 1))
        """
        holds(world, snippet)


# ---- memory in use ----

KILLS = {
    "unmapping under a running kernel":
        "launch(one, Reads(pages[1], PAGE), duration_s=FOREVER); cu.cuMemUnmap(pages[1], PAGE)",
    "unmapping under a queued kernel":
        "launch(one, Reads(pages[0], 8), duration_s=FOREVER); launch(one, Reads(pages[1], PAGE));"
        "cu.cuMemUnmap(pages[1], PAGE)",
    "unmapping one byte of a kernel's":
        "launch(one, Writes(pages[1] - 64, 65), duration_s=FOREVER); cu.cuMemUnmap(pages[1], PAGE)",
    "unmapping the second range of a kernel":
        "launch(one, Reads(pages[0], 8), Writes(pages[3], 8), duration_s=FOREVER); cu.cuMemUnmap(pages[2], 2 * PAGE)",
    "unmapping after a kernel that nobody waited for":
        "launch(one, Reads(pages[1], PAGE)); time.sleep(0.05); cu.cuMemUnmap(pages[1], PAGE)",
    "unmapping after a wait for another stream":
        "launch(one, Reads(pages[1], PAGE)); ok(cu.cuStreamSynchronize(other)); ok(cu.cuStreamSynchronize(0));"
        "cu.cuMemUnmap(pages[1], PAGE)",
    "unmapping after an event that was recorded before":
        "e = event(); ok(cu.cuEventRecord(e, one)); launch(one, Reads(pages[1], PAGE)); ok(cu.cuEventSynchronize(e));"
        "cu.cuMemUnmap(pages[1], PAGE)",
    "unmapping after an event that is not done":
        "e = event(); launch(one, Reads(pages[1], PAGE), duration_s=FOREVER); ok(cu.cuEventRecord(e, one));"
        "assert code(cu.cuEventQuery(e)) == 600; cu.cuMemUnmap(pages[1], PAGE)",
    "unmapping after a fill that nobody waited for": "ok(cu.cuMemsetD8(pages[1], 0, PAGE)); cu.cuMemUnmap(r, 2 * PAGE)",
    "unmapping the source of a copy that nobody waited for":
        "ok(cu.cuMemcpyDtoDAsync(pages[2], pages[1], 8, one)); cu.cuMemUnmap(pages[1], PAGE)",
    "unmapping the destination of a copy that nobody waited for":
        "ok(cu.cuMemcpyDtoD(pages[1], pages[2], 8)); cu.cuMemUnmap(pages[1], PAGE)",
    "unmapping under the kernel of a stream that was destroyed":
        "launch(one, Reads(pages[1], PAGE)); ok(cu.cuStreamDestroy(one)); cu.cuMemUnmap(pages[1], PAGE)",
    "taking access away under a running kernel":
        "launch(one, Reads(pages[1], PAGE), duration_s=FOREVER); cu.cuMemSetAccess(pages[1], PAGE, [access(NONE)], 1)",
    "taking the right to write away under a running kernel":
        "launch(one, Writes(pages[1], 8), duration_s=FOREVER); cu.cuMemSetAccess(r, 4 * PAGE, [access(READ)], 1)",
}  # fmt: skip


@pytest.mark.parametrize("kill", KILLS)
def test_the_process_dies_of(world: World, kill: str) -> None:
    outcome = run_streams(world, f"say('alive')\n{KILLS[kill]}\nsay('still alive')")
    assert (outcome.stdout, outcome.returncode) == ("alive\n", -signal.SIGABRT), outcome.stderr
    assert "Xid 31" in outcome.stderr


PROOFS = {
    "its stream": "ok(cu.cuStreamSynchronize(one))",
    "its context": "ok(cu.cuCtxSynchronize())",
    "an event of its stream": "ok(cu.cuEventRecord(e, one)); ok(cu.cuEventSynchronize(e))",
    "an event of its context": "ok(cu.cuCtxRecordEvent(context, e)); ok(cu.cuEventSynchronize(e))",
    "a stream that waits for its event":
        "ok(cu.cuEventRecord(e, one)); ok(cu.cuStreamWaitEvent(other, e, 0)); ok(cu.cuStreamSynchronize(other))",
    "a copy in a stream that waits for its event":
        "ok(cu.cuEventRecord(e, one)); ok(cu.cuStreamWaitEvent(0, e, 0));"
        "ok(cu.cuMemcpyDtoH(bytearray(1), pages[0], 1))",
}  # fmt: skip


@pytest.mark.parametrize("wait", PROOFS)
def test_memory_can_be_unmapped_after_a_wait_for(world: World, wait: str) -> None:
    snippet = f"e = event(); launch(one, Reads(pages[1], PAGE), duration_s=0.01)\n{PROOFS[wait]}\n"
    holds(world, snippet + "ok(cu.cuMemUnmap(pages[1], PAGE))")


@pytest.mark.parametrize("query", ["cu.cuEventQuery(e)", "cu.cuStreamQuery(one)"])
def test_memory_can_be_unmapped_after_a_query_that_says_done(world: World, query: str) -> None:
    snippet = "e = event(); launch(one, Reads(pages[1], PAGE), duration_s=0.01); ok(cu.cuEventRecord(e, one))\n"
    holds(world, snippet + f"while code({query}) == 600: time.sleep(0.001)\nok(cu.cuMemUnmap(pages[1], PAGE))")


def test_memory_beside_a_running_kernels_can_be_unmapped_and_access_be_given(world: World) -> None:
    snippet = """
    launch(one, Reads(pages[1], PAGE), duration_s=FOREVER)
    ok(cu.cuMemUnmap(pages[0], PAGE)); ok(cu.cuMemUnmap(pages[2], PAGE))
    ok(cu.cuMemSetAccess(pages[1], PAGE, [access()], 1))
    """
    holds(world, snippet)


OVERWRITTEN = {
    "a read kernel": "Reads(pages[0], 4096)",
    "a write kernel": "Writes(pages[0], 4096)",
    "the second range of a kernel": "Reads(pages[1], 4096), Reads(pages[0], 4096)",
}


@pytest.mark.parametrize("kernel", OVERWRITTEN)
def test_another_process_that_overwrites_the_memory_ends_the_one_with(world: World, kernel: str) -> None:
    user = f"""
    send_fd(inherited_socket(), export(ok(cu.cuMemRetainAllocationHandle(pages[0]))))
    hear()
    launch(one, {OVERWRITTEN[kernel]}, duration_s=LONG)
    ok(cu.cuStreamSynchronize(one))
    say("alive")
    """
    writer = """
    import itertools
    ok(cu.cuInit(0)); enter_context()
    page = attach(reserve(PAGE), ok(cu.cuMemImportFromShareableHandle(receive_fd(inherited_socket()), FD)))
    for number in itertools.count():
        ok(cu.cuMemsetD8(page, number % 256, PAGE)); ok(cu.cuCtxSynchronize())
        if number == 1: say("writing")
    """
    ours, theirs = socket.socketpair()
    with ours, theirs:
        with Guest(world, SETUP + textwrap.dedent(user), ours) as guest, Guest(world, writer, theirs) as other:
            assert other.hear() == "writing"
            guest.say()
            assert guest.hear() == ""
            assert guest.finish() == -signal.SIGABRT


def test_an_alias_that_overwrites_a_kernels_memory_is_noticed(world: World) -> None:
    snippet = """
    alias = attach(reserve(PAGE), ok(cu.cuMemRetainAllocationHandle(pages[0])))
    launch(one, Reads(pages[0], PAGE), duration_s=LONG)
    ok(cu.cuMemsetD8Async(alias + PAGE - 1, 1, 1, other))
    cu.cuStreamSynchronize(one)
    """
    outcome = run_streams(world, snippet)
    assert outcome.returncode == -signal.SIGABRT
    assert "found other bytes" in outcome.stderr


ILLEGAL = {
    "what is not mapped": "ok(cu.cuMemUnmap(pages[1], PAGE)); launch(one, Reads(pages[0], PAGE + 1))",
    "what is no reservation": "launch(one, Reads(id(r), 8))",
    "what it may not write": "ok(cu.cuMemSetAccess(r, PAGE, [access(READ)], 1)); launch(one, Writes(r, 8))",
    "what it may not read": "ok(cu.cuMemSetAccess(r, PAGE, [access(NONE)], 1)); launch(one, Reads(r, 8))",
}


@pytest.mark.parametrize("illegal", ILLEGAL)
def test_a_kernel_that_uses_ends_all_work_in_the_process(world: World, illegal: str) -> None:
    snippet = f"launch(other, Reads(pages[3], PAGE), duration_s=FOREVER)\n{ILLEGAL[illegal]}\n"
    asks = "cu.cuStreamSynchronize(one), cu.cuStreamSynchronize(other), cu.cuMemCreate(PAGE, prop(), 0)"
    outcome = run_streams(world, snippet + f"say([code(answer) for answer in ({asks})])")
    assert outcome.lines == ["[700, 700, 700]"]
    assert "illegal address" in outcome.stderr


def test_a_thread_that_waits_is_told_of_an_illegal_address(world: World) -> None:
    snippet = """
    import threading
    said = []
    def wait():
        ok(cu.cuCtxSetCurrent(context))
        said.append(code(cu.cuStreamSynchronize(one)))
    launch(one, Reads(pages[0], PAGE), duration_s=FOREVER)
    thread = threading.Thread(target=wait)
    thread.start()
    launch(other, Reads(0, 1))
    thread.join()
    say(said)
    """
    assert run_streams(world, snippet).lines == ["[700]"]


def test_many_threads_with_streams_of_their_own_lose_no_work(world: World) -> None:
    snippet = """
    import threading
    wrong = []
    def work(place):
        ok(cu.cuCtxSetCurrent(context))
        for round in range(20):
            s, e = stream(DEFAULT if place % 2 else NON_BLOCKING), event()
            launch(s, Writes(pages[place], 4096, byte=round + 1), duration_s=0.001)
            ok((cu.cuCtxRecordEvent(context, e) if place < 2 else cu.cuEventRecord(e, s)))
            ok(cu.cuStreamDestroy(s))
            ok(cu.cuEventSynchronize(e))
            ok(cu.cuEventDestroy(e))
            if byte(place) != round + 1: wrong.append((place, round))
            ok(cu.cuMemUnmap(pages[place], PAGE)); attach(pages[place], create())
    threads = [threading.Thread(target=work, args=(place,)) for place in range(4)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert not wrong
    """
    holds(world, snippet)


def test_a_child_forked_with_work_on_the_device_ends_well(world: World) -> None:
    snippet = """
    launch(one, Writes(pages[0], PAGE), duration_s=LONG)
    pid = os.fork()
    if pid == 0:
        os._exit(0 if code(cu.cuStreamSynchronize(one)) == try_launch(one, Reads(r, 1)) == 3 else 1)
    assert os.waitpid(pid, 0)[1] == 0
    ok(cu.cuStreamSynchronize(one))
    """
    assert run_streams(world, snippet).returncode == 0
