"""The world itself: its facts, counters, latencies, NVML's view, and that no death of a process spoils it."""

import signal
import uuid
from pathlib import Path

import pytest

from .library import LIBRARIES, build
from .processes import Guest, run
from .world import LATENCIES_US, MIB, CallCount, World

PAGE = 2 * MIB


def test_building_twice_compiles_once(tmp_path: Path) -> None:
    libraries = build(tmp_path)
    times = {path.name: path.stat().st_mtime_ns for path in libraries.iterdir()}
    assert set(times) == set(LIBRARIES)
    assert build(tmp_path) == libraries
    assert {path.name: path.stat().st_mtime_ns for path in libraries.iterdir()} == times
    assert [path.name for path in tmp_path.iterdir()] == [libraries.name]


def test_a_device_tells_its_facts() -> None:
    identity = uuid.uuid4()
    with World(devices=1, memory_bytes=3 << 30, uuids=[identity], name="Tesla") as world:
        snippet = """
        ok(cu.cuInit(0))
        say(ok(cu.cuDeviceGetCount()))
        say(ok(cu.cuDeviceGetName(16, 0)).split(b"\\0")[0])
        say(ok(cu.cuDeviceTotalMem(0)))
        say(ok(cu.cuDeviceGetUuid(0)).bytes.hex())
        A = cu.CUdevice_attribute
        say([ok(cu.cuDeviceGetAttribute(getattr(A, "CU_DEVICE_ATTRIBUTE_" + name), 0)) for name in (
            "VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED", "HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED",
            "HANDLE_TYPE_FABRIC_SUPPORTED", "GPU_DIRECT_RDMA_WITH_CUDA_VMM_SUPPORTED", "COMPUTE_CAPABILITY_MAJOR")])
        say([ok(cu.cuMemGetAllocationGranularity(prop(), kind)) for kind in cu.CUmemAllocationGranularity_flags])
        say(ok(cu.cuGetErrorName(cu.CUresult.CUDA_ERROR_OUT_OF_MEMORY)))
        say(code(cu.cuGetErrorString(cu.CUresult(718))))
        """
        facts = ["1", "b'Tesla'", str(3 << 30), identity.hex, "[1, 1, 0, 0, 8]", str([PAGE, PAGE])]
        assert run(world, snippet).lines == [*facts, "b'CUDA_ERROR_OUT_OF_MEMORY'", "1"]


def test_structures_have_the_layout_that_cuda_bindings_gives_them() -> None:
    with World(devices=2) as world:
        snippet = """
        ok(cu.cuInit(0))
        h = create(device=1)
        p = ok(cu.cuMemGetAllocationPropertiesFromHandle(h))
        say([int(p.type), int(p.requestedHandleTypes), int(p.location.type), p.location.id, int(p.win32HandleMetaData)])
        r = reserve(PAGE)
        ok(cu.cuMemMap(r, PAGE, 0, h, 0))
        ok(cu.cuMemSetAccess(r, PAGE, [access(READ, 0), access(READWRITE, 1)], 2))
        say([int(ok(cu.cuMemGetAccess(access(device=device).location, r))) for device in (0, 1)])
        say(ok(cu.cuPointerGetAttribute(cu.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, r)))
        """
        assert run(world, snippet).lines == ["[1, 1, 1, 1, 0]", "[1, 3]", "1"]
        assert (world.counters()["cuMemCreate"], world.refused()) == (CallCount(calls=1), 0)


def test_a_name_that_is_not_simulated_has_no_address(world: World) -> None:
    snippet = """
    library = ctypes.CDLL("libcuda.so.1")
    function, status = ctypes.c_void_p(1), ctypes.c_int(7)
    ask = lambda name: library.cuGetProcAddress_v2(name, ctypes.byref(function), 13000, 0, ctypes.byref(status))
    say([ask(b"cuLaunchKernelEx"), function.value, status.value])
    direct = ctypes.cast(library.cuMemGetInfo_v2, ctypes.c_void_p).value
    say([ask(b"cuMemGetInfo"), function.value == direct, status.value])
    """
    assert run(world, snippet).lines == ["[500, None, 1]", "[0, True, 0]"]


@pytest.mark.parametrize(("visible", "seen"), [("1,0", "21"), ("GPU-22", "2"), ("0,7,1", "1"), ("", ""), ("0,0", "")])
def test_cuda_visible_devices_renumbers(visible: str, seen: str) -> None:
    with World(devices=2, uuids=[uuid.UUID("1" * 32), uuid.UUID("2" * 32)]) as world:
        snippet = """
        say([code(cu.cuInit(0))])
        say("".join(ok(cu.cuDeviceGetUuid(i)).bytes.hex()[0] for i in range(ok(cu.cuDeviceGetCount()))))
        """ if seen else "say([code(cu.cuInit(0))])"  # fmt: skip
        expected = ["[0]", seen] if seen else ["[100]"]
        assert run(world, snippet, CUDA_VISIBLE_DEVICES=visible).lines == expected


def test_fresh_memory_can_be_made_dirty() -> None:
    with World(fresh_byte=0xA5) as world:
        snippet = "ok(cu.cuInit(0)); say(set(ctypes.string_at(attach(reserve(PAGE), create()), PAGE)))"
        assert run(world, snippet).lines == ["{165}"]


def test_nvml_sees_the_memory_of_all_processes_and_no_process_needs_a_context() -> None:
    identity = uuid.uuid4()
    with World(devices=2, memory_bytes=512 * MIB, uuids=[uuid.uuid4(), identity]) as world:
        holder = "ok(cu.cuInit(0)); h = create(6 * PAGE, device=1); say('held'); hear()"
        asker = f"""
        import pynvml
        pynvml.nvmlInit()
        device = pynvml.nvmlDeviceGetHandleByUUID("GPU-{identity}")
        def tell():
            one = pynvml.nvmlDeviceGetMemoryInfo(device)
            two = pynvml.nvmlDeviceGetMemoryInfo(device, pynvml.nvmlMemory_v2)
            assert (one.total, one.used, one.free) == (two.total, two.used, two.free)
            say([one.total >> 20, one.used >> 20, one.free >> 20])
        say([pynvml.nvmlDeviceGetCount(), pynvml.nvmlDeviceGetUUID(device), pynvml.nvmlSystemGetDriverVersion()[:3]])
        tell(); hear(); tell()
        """
        with Guest(world, holder) as guest:
            assert guest.hear() == "held"
            with Guest(world, asker) as nvml:
                assert nvml.hear() == str([2, f"GPU-{identity}", "580"])
                assert nvml.hear() == "[512, 12, 500]"
                guest.kill()
                nvml.say()
                assert nvml.hear() == "[512, 0, 512]"


def test_nvml_names_the_processes_that_compute_and_not_those_that_only_hold_memory(world: World) -> None:
    computes = "ok(cu.cuInit(0)); enter_context(); say('ready'); hear()"
    holds = "ok(cu.cuInit(0)); h = create(); say('ready'); hear()"
    asker = """
    import pynvml
    pynvml.nvmlInit()
    device = pynvml.nvmlDeviceGetHandleByIndex(0)
    say([(one.pid, one.usedGpuMemory) for one in pynvml.nvmlDeviceGetComputeRunningProcesses(device)])
    """
    with Guest(world, computes) as first, Guest(world, holds) as second:
        assert (first.hear(), second.hear()) == ("ready", "ready")
        assert run(world, asker).lines == [str([(first.pid, None)])]
        first.kill()
        assert run(world, asker).lines == ["[]"]


def test_a_test_may_split_devices_and_change_what_they_say_of_themselves(world: World) -> None:
    snippet = """
    import pynvml
    pynvml.nvmlInit()
    device = pynvml.nvmlDeviceGetHandleByIndex(0)
    say(pynvml.nvmlDeviceGetMigMode(device))
    for index in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(device)):
        try:
            say(pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetMigDeviceHandleByIndex(device, index))[:4])
        except pynvml.NVMLError_NotFound:
            break
    ok(cu.cuInit(0))
    say([ok(cu.cuDeviceGetAttribute(cu.CUdevice_attribute(number), 0)) for number in (102, 103)])
    """
    assert run(world, snippet).lines == ["[0, 0]", "[1, 1]"]
    told = world.env(mig_devices=2, attributes={102: 0})
    assert run(world, snippet, **told).lines == ["[1, 1]", "MIG-", "MIG-", "[0, 1]"]


def test_nvml_refuses_what_is_not_there(world: World) -> None:
    snippet = """
    import pynvml
    def error(call, *arguments):
        try:
            call(*arguments)
        except pynvml.NVMLError as refusal:
            return refusal.value, str(refusal)
    pynvml.nvmlInit()
    say([error(pynvml.nvmlDeviceGetHandleByIndex, 1), error(pynvml.nvmlDeviceGetHandleByUUID, "GPU-0")])
    device = pynvml.nvmlDeviceGetHandleByIndex(0)
    say(error(pynvml.nvmlDeviceGetMemoryInfo, device, 1))
    pynvml.nvmlShutdown()
    say(error(pynvml.nvmlDeviceGetCount))
    """
    assert run(world, snippet).lines == [
        "[(2, 'Invalid Argument'), (6, 'Not Found')]",
        "(25, 'Argument Version Mismatch')",
        "(1, 'Uninitialized')",
    ]


TIMED = """
ok(cu.cuInit(0))
count = 100
began = time.perf_counter()
handles = [create() for _ in range(count)]
say((time.perf_counter() - began) / count * 1e6)
"""


def test_calls_last_their_latency_and_no_longer_than_they_must() -> None:
    with World(latencies="a100") as slow:
        (measured_us,) = map(float, run(slow, TIMED).lines)
    published_us = LATENCIES_US["a100"]["cuMemCreate"]
    assert published_us <= measured_us < 4 * published_us


def test_latencies_are_any_calls_and_can_be_changed_while_a_process_runs(world: World) -> None:
    snippet = """
    ok(cu.cuInit(0))
    while hear():
        began = time.perf_counter()
        ok(cu.cuDeviceGetCount())
        say(time.perf_counter() - began)
    """
    with Guest(world, snippet) as guest:
        guest.say()
        quick_s = float(guest.hear())
        world.set_latencies({"cuDeviceGetCount": 50_000})
        guest.say()
        assert float(guest.hear()) >= 0.05 > quick_s
    with pytest.raises(ValueError, match="cuNoSuchCall"):
        world.set_latencies({"cuNoSuchCall": 1})


def test_a_slow_call_of_one_thread_does_not_hold_up_another() -> None:
    with World(latencies={"cuMemUnmap": 200_000}) as world:
        snippet = """
        import threading
        ok(cu.cuInit(0))
        pages = [attach(reserve(PAGE), create()) for _ in range(4)]
        threads = [threading.Thread(target=lambda page=page: ok(cu.cuMemUnmap(page, PAGE))) for page in pages]
        began = time.perf_counter()
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        say(time.perf_counter() - began)
        """
        (took_s,) = run(world, snippet).lines
        assert 0.2 <= float(took_s) < 0.7


def test_calls_are_counted_in_all_and_by_process(world: World) -> None:
    snippet = "ok(cu.cuInit(0)); [create() for _ in range({})]; cu.cuMemCreate(1, prop(), 0); say(os.getpid())"
    pids = [int(run(world, snippet.format(count)).lines[0]) for count in (3, 5)]
    assert [world.counters(pid)["cuMemCreate"] for pid in pids] == [CallCount(4, 1), CallCount(6, 1)]
    assert world.counters()["cuMemCreate"] == CallCount(calls=10, refused=2)
    assert world.counters()["cuMemMap"] == CallCount()
    assert world.refused() == 2


def test_many_threads_lose_no_page_and_no_count(world: World) -> None:
    snippet = """
    import threading
    ok(cu.cuInit(0))
    def work():
        r = reserve(8 * PAGE)
        for _ in range(20):
            handles = [create() for _ in range(8)]
            for i, h in enumerate(handles):
                attach(r + i * PAGE, h)
                ctypes.memset(r + i * PAGE, i, 1)
                ok(cu.cuMemRelease(h))
            ok(cu.cuMemUnmap(r, 8 * PAGE))
        ok(cu.cuMemAddressFree(r, 8 * PAGE))
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    hear()
    """
    with Guest(world, snippet) as guest:
        guest.say()
        assert guest.finish() == 0
    assert world.counters()["cuMemMap"] == CallCount(calls=640)
    assert world.counters()["cuMemRelease"] == CallCount(calls=640)
    assert (world.used_bytes(), world.refused()) == (0, 0)


def test_a_process_killed_with_the_lock_held_leaves_the_world_usable(world: World) -> None:
    snippet = f"""
    ok(cu.cuInit(0))
    pages = [create() for _ in range(5)]
    control = ctypes.CDLL({str(world.libraries / "libcudasim.so")!r})
    control.cudasim_open.restype = ctypes.c_void_p
    control.cudasim_hold_lock(ctypes.c_void_p(control.cudasim_open(os.environb[b"CUDASIM_WORLD"])))
    os.kill(os.getpid(), signal.SIGKILL)
    """
    with Guest(world, "ok(cu.cuInit(0)); h = create(); say('held'); hear(); create(); say('more'); hear()") as guest:
        assert guest.hear() == "held"
        assert run(world, snippet).returncode == -signal.SIGKILL
        guest.say()
        assert guest.hear() == "more"
        assert (world.allocation_count(), world.used_bytes()) == (2, 2 * PAGE)


def test_processes_killed_at_any_moment_leave_nothing_behind(world: World) -> None:
    churn = """
    ok(cu.cuInit(0)); enter_context()
    r = reserve(PAGE)
    say("churning")
    while True:
        h = create()
        attach(r, h)
        os.close(export(h))
        ok(cu.cuMemUnmap(r, PAGE))
        ok(cu.cuMemRelease(h))
    """
    with Guest(world, "ok(cu.cuInit(0))\nwhile hear(): h = create(); say(h); ok(cu.cuMemRelease(h))") as witness:
        for _ in range(10):
            with Guest(world, churn) as guest:
                assert guest.hear() == "churning"
                for _ in range(3):
                    witness.say()
                    assert witness.hear()
            assert (world.allocation_count(), world.used_bytes()) == (0, 0)
    assert world.refused() == 0


def test_worlds_are_apart_and_leave_nothing() -> None:
    with World() as one, World() as other:
        with Guest(one, "ok(cu.cuInit(0)); h = create(); say('held'); hear()") as guest:
            assert guest.hear() == "held"
            assert (one.allocation_count(), other.allocation_count()) == (1, 0)
        paths = [one.path, other.path]
        assert all(path.exists() for path in paths)
    assert not any(path.exists() for path in paths)
    one.close()
    with pytest.raises(ValueError, match="closed"):
        one.used_bytes()
