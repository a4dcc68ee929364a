"""Whatever the real driver refuses is refused, with its code, counted, and without a trace."""

import json
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from .misuses import MISUSES, NOT_INITIALIZED, OUT_OF_MEMORY, SETUP, Misuse
from .processes import run
from .world import CallCount, World

# Forks a child per misuse before cuInit, which is legal and saves a Python start each.
RUN_ALL = """
def what_is_mapped():
    pages = [r + i * PAGE for i in range(8)]
    if code(cu.cuPointerGetAttribute(cu.CUpointer_attribute.CU_POINTER_ATTRIBUTE_MAPPED, r)) == 700:
        return None  # nothing can be asked any more
    mapped = [ok(cu.cuPointerGetAttribute(cu.CUpointer_attribute.CU_POINTER_ATTRIBUTE_MAPPED, page)) for page in pages]
    return [ok(cu.cuMemGetAccess(access().location, page)) if there else None for page, there in zip(pages, mapped)]
setup, misuses = json.loads(hear())
for before, expression in misuses:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        exec(setup)
        exec(before)
        mapped = what_is_mapped()
        result = code(eval(expression))
        changed = result != 700 and what_is_mapped() != mapped
        os.write(writing, json.dumps([os.getpid(), result, changed]).encode())
        os._exit(0)
    os.close(writing)
    say(os.read(reading, 1000).decode() or json.dumps([pid, None, None]))
    os.close(reading)
    os.waitpid(pid, 0)
"""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a misuse; `code` is None if the process died of it."""

    code: int | None
    changed: bool
    count: CallCount


@pytest.fixture(scope="module")
def verdicts() -> Iterator[dict[str, Verdict]]:
    """All misuses, each in a process of its own."""
    with World(context_bytes=2 << 20) as world:
        outcome = run(world, RUN_ALL, json.dumps([SETUP, [[m.before, m.expression] for m in MISUSES]]) + "\n")
        found = {}
        for misuse, line in zip(MISUSES, outcome.lines, strict=True):
            pid, code, changed = json.loads(line)
            found[misuse.sentence] = Verdict(code, changed, world.counters(pid)[misuse.call])
        assert world.used_bytes() == 0
        yield found


@pytest.mark.parametrize("misuse", MISUSES, ids=lambda misuse: misuse.sentence)
def test_misuse_is_refused_counted_and_without_effect(misuse: Misuse, verdicts: dict[str, Verdict]) -> None:
    verdict = verdicts[misuse.sentence]
    assert verdict.code == misuse.code
    assert not verdict.changed
    expected = (0, 1) if misuse.code == OUT_OF_MEMORY else (1, 0)
    assert (verdict.count.refused, verdict.count.exhausted) == expected


def test_every_sentence_is_told_once() -> None:
    assert len({misuse.sentence for misuse in MISUSES}) == len(MISUSES)


NEED_INIT = [
    "cu.cuDeviceGet(0)",
    "cu.cuDeviceGetCount()",
    "cu.cuDevicePrimaryCtxRetain(0)",
    "cu.cuCtxSynchronize()",
    "cu.cuMemGetAllocationGranularity(prop(), MINIMUM)",
    "cu.cuMemCreate(PAGE, prop(), 0)",
    "cu.cuMemRelease(1)",
    "cu.cuMemExportToShareableHandle(1, FD, 0)",
    "cu.cuMemImportFromShareableHandle(0, FD)",
    "cu.cuMemAddressReserve(PAGE, 0, 0, 0)",
    "cu.cuMemAddressFree(PAGE, PAGE)",
    "cu.cuMemMap(PAGE, PAGE, 0, 1, 0)",
    "cu.cuMemSetAccess(PAGE, PAGE, [access()], 1)",
    "cu.cuMemUnmap(PAGE, PAGE)",
    "cu.cuMemsetD8(PAGE, 0, 1)",
    "cu.cuStreamCreate(0)",
    "cu.cuEventQuery(1)",
]


def test_nothing_works_before_init(world: World) -> None:
    calls = ", ".join(NEED_INIT)
    outcome = run(world, f"say([code(answer) for answer in [{calls}]])\nsay(ok(cu.cuDriverGetVersion()))")
    assert outcome.lines == [str([NOT_INITIALIZED] * len(NEED_INIT)), "13000"]


def test_a_child_forked_after_init_can_call_nothing(world: World) -> None:
    calls = ", ".join(["cu.cuInit(0)", *NEED_INIT])
    snippet = f"""
    ok(cu.cuInit(0))
    if os.fork() == 0:
        say([code(answer) for answer in [{calls}]])
        os._exit(0)
    os.wait()
    say(code(cu.cuMemCreate(PAGE, prop(), 0)))
    """
    assert run(world, snippet).lines == [str([NOT_INITIALIZED] * (len(NEED_INIT) + 1)), "0"]


def test_a_child_forked_before_init_is_a_user_of_its_own(world: World) -> None:
    snippet = """
    say(ok(cu.cuDriverGetVersion()))
    if os.fork() == 0:
        ok(cu.cuInit(0))
        say(os.getpid())
        os._exit(0)
    os.wait()
    ok(cu.cuInit(0))
    """
    lines = run(world, snippet).lines
    assert world.counters(int(lines[1]))["cuInit"] == CallCount(calls=1)


@pytest.mark.parametrize(
    "misuse",
    [
        "h = create(); ok(cu.cuMemRelease(h)); cu.cuMemRelease(h)",
        "h = create(); attach(reserve(PAGE), h); ok(cu.cuMemRelease(h)); cu.cuMemRelease(h)",
        "h = create(); ok(cu.cuMemRelease(h)); create(); cu.cuMemRelease(h)",
        "cu.cuMemRelease(12345)",
    ],
    ids=["released twice", "released twice while mapped", "released after its place was taken", "made up"],
)
def test_releasing_what_is_no_handle_ends_the_process_with_a_reason(world: World, misuse: str) -> None:
    outcome = run(world, f"ok(cu.cuInit(0)); {misuse}")
    assert outcome.returncode == -6
    assert "holds no such handle" in outcome.stderr


def test_a_handle_of_another_process_is_no_handle_here(world: World) -> None:
    snippet = """
    pid = os.fork()
    ok(cu.cuInit(0))
    h = create()
    if pid:
        os.waitpid(pid, 0)
        say(h)
    """
    (parents,) = run(world, snippet).lines
    assert run(world, f"ok(cu.cuInit(0)); create(); cu.cuMemRelease({parents})").returncode == -6


def test_without_a_world_there_is_no_device(world: World) -> None:
    assert run(world, "del os.environ['CUDASIM_WORLD']; say(code(cu.cuInit(0)))").lines == ["100"]


def test_a_directory_that_is_no_world_is_a_driver_mismatch(
    world: World, tmp_path_factory: pytest.TempPathFactory
) -> None:
    strange = tmp_path_factory.mktemp("strange")
    (strange / "world").write_bytes(b"x" * 4096)
    assert run(world, "say(code(cu.cuInit(0)))", CUDASIM_WORLD=str(strange)).lines == ["803"]
