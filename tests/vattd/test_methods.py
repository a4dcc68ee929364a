"""Requests as methods get them: small ones at once, large ones one after the other, and what is none with an error."""

from __future__ import annotations

import asyncio

import pytest

from vatt.errors import InvalidRequest
from vatt.v1 import vatt_pb2 as pb
from vattd.methods import LARGE_BYTES, Lane, Unparsed, _parser_of, well_formed

SMALL = pb.ReturnPagesRequest(runs=[pb.PageRun(first_page_id=5, page_count=1, generation=9)])
LARGE = pb.ReturnPagesRequest(runs=[pb.PageRun(first_page_id=n, page_count=1, generation=9) for n in range(100_000)])


def test_a_small_request_is_there_at_once() -> None:
    assert _parser_of(pb.ReturnPagesRequest)(SMALL.SerializeToString()) == SMALL


@pytest.mark.parametrize("body", [b"\x12\xff", b"\xff" * (LARGE_BYTES + 1)])
def test_what_is_no_message_is_an_invalid_request(body: bytes) -> None:
    parse = _parser_of(pb.ReturnPagesRequest)
    with pytest.raises(InvalidRequest, match="not a ReturnPagesRequest"):
        asyncio.run(well_formed(parse(body), lambda head: Lane()))


def test_large_requests_come_one_after_the_other_and_leave_the_loop_to_others() -> None:
    """While ten of them are parsed, a task that only wants its turn has hundreds."""
    parse = _parser_of(pb.ReturnPagesRequest)
    bodies = [LARGE.SerializeToString()] * 10
    lane = Lane()

    async def story() -> int:
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        task = asyncio.create_task(other())
        for request in await asyncio.gather(*(well_formed(parse(body), lambda head: lane) for body in bodies)):
            assert request == LARGE
        task.cancel()
        return turns

    assert asyncio.run(story()) > 300


def test_the_head_of_a_request_names_its_sender_and_nothing_else() -> None:
    key = pb.SessionKey(session_id="7-1", secret=b"s" * 16)
    body = pb.ReturnPagesRequest(key=key, runs=LARGE.runs).SerializeToString()
    assert Unparsed(pb.ReturnPagesRequest, body).head() == pb.ReturnPagesRequest(key=key)
    attach = pb.AttachRequest(token=b"t" * 16, claims=LARGE.runs).SerializeToString()
    assert Unparsed(pb.AttachRequest, attach).head() == pb.AttachRequest(token=b"t" * 16)
    for odd in (b"", b"\x0a", b"\x0a\xff" + body, LARGE.SerializeToString()):
        assert Unparsed(pb.ReturnPagesRequest, odd).head() == pb.ReturnPagesRequest()


def test_a_large_request_of_nobody_is_refused_unread() -> None:
    def nobody(head: object) -> Lane:
        raise InvalidRequest(f"{head} is nobody")

    with pytest.raises(InvalidRequest, match="is nobody"):
        asyncio.run(well_formed(Unparsed(pb.ReturnPagesRequest, LARGE.SerializeToString()), nobody))
