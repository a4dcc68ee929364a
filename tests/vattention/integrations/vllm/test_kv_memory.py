"""What a rank asks of its scheduler when vattd wants pages back."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from tests.daemon import Vattd
from vatt.usage import Usage
from vattention.block_geometry import BlockGeometry, Stripe
from vattention.integrations.vllm.budget import Budget
from vattention.integrations.vllm.kv_memory import KVMemory
from vattention.integrations.vllm.messages import Wanted
from vattention.integrations.vllm.ranks import Ranks
from vattention.session import Session

PAGE = 64 << 10
GEOMETRY = BlockGeometry(8, (Stripe(0, PAGE, PAGE),), PAGE)
HEARD_WITHIN_S = 10.0


@pytest.fixture(scope="module")
def socket_dir() -> Iterator[Path]:
    with Vattd("--pool-max", str(32 * PAGE)) as vattd:
        yield vattd.socket_dir


@pytest.fixture
def memories(socket_dir: Path) -> Iterator[list[KVMemory]]:
    """Two ranks of one engine."""
    with tempfile.TemporaryDirectory() as directory, ExitStack() as closed:
        sessions = [closed.enter_context(Session.connect("engine", socket_dir=socket_dir)) for _ in range(2)]
        yield [
            KVMemory(session, GEOMETRY, Path(directory) / "private" / f"{rank}.sock")
            for rank, session in enumerate(sessions)
        ]


def asked(memory: KVMemory, hearing: Connection) -> Wanted:
    """What the scheduler hears when vattd asks this rank, as it does again and again."""
    deadline_s = time.monotonic() + HEARD_WITHIN_S
    while not hearing.poll():
        assert time.monotonic() < deadline_s, "the scheduler is not asked any more"
        memory.gather_idle(1)
    wanted = hearing.recv()
    assert isinstance(wanted, Wanted)
    return wanted


def test_what_vattd_wanted_before_there_was_a_scheduler_does_not_keep_the_rank_from_asking(
    memories: list[KVMemory],
) -> None:
    assert memories[0].gather_idle(1) == []
    (hearing, _) = Ranks([memory.path for memory in memories]).subscribe()
    assert asked(memories[0], hearing).page_count == 1


def test_ranks_are_asked_independently_and_an_answer_to_one_leaves_none_of_them_waiting(
    memories: list[KVMemory],
) -> None:
    paths = [memory.path for memory in memories]
    ranks, hearing = Ranks(paths), Ranks(paths).subscribe()
    budget = Budget(GEOMETRY, ranks.attach().credit_pages)

    def answer(*wanted: Wanted) -> None:
        for each in wanted:
            budget.answer(each.number)
        ranks.carry_out(budget.orders(0, Usage()))

    for _ in range(2):
        answer(asked(memories[0], hearing[0]))
    answer(asked(memories[1], hearing[1]))
    first, second = asked(memories[0], hearing[0]), asked(memories[1], hearing[1])
    answer(second, first)
    for memory, each in zip(memories, hearing, strict=True):
        asked(memory, each)
