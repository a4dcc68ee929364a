"""Messages as JSON: every field under its own name, numbers as numbers."""

from __future__ import annotations

import json

import pytest
from google.protobuf.json_format import MessageToDict

from vatt.plain import to_plain
from vatt.v1 import vatt_pb2 as pb


def test_every_field_is_there_and_integers_are_numbers() -> None:
    tenant = pb.Tenant(name="chat", leased_bytes=1 << 50, guarantee=pb.Guarantee(min_bytes=3))
    tenant.longest_wait.FromMilliseconds(1500)
    plain = to_plain(tenant)
    assert set(plain) == {field.name for field in pb.Tenant.DESCRIPTOR.fields}
    assert plain["leased_bytes"] == 1 << 50
    assert plain["longest_wait"] == "1.500s"
    assert plain["guarantee"]["min_bytes"] == 3
    assert plain["guarantee"]["max_bytes"] is None  # unset, which is not 0
    assert plain["promise"] is None
    assert json.loads(json.dumps(plain)) == plain


def test_lists_of_messages_and_of_numbers_are_lists() -> None:
    tenant = pb.Tenant(access=pb.AccessList(uids=[1, 2]))
    status = pb.GetStatusResponse(tenants=[tenant], pool=pb.Pool(pages_by_state=[pb.PagesInState(state="clean")]))
    plain = to_plain(status)
    assert plain["tenants"][0]["access"] == {"uids": [1, 2], "gids": []}
    assert plain["pool"]["pages_by_state"] == [{"state": "clean", "page_count": 0}]
    assert plain["sessions"] == []


@pytest.mark.parametrize("state", pb.Promise.State.values())
def test_an_enum_is_its_name(state: pb.Promise.State.ValueType) -> None:
    assert to_plain(pb.Promise(state=state))["state"] == pb.Promise.State.Name(state)


def test_an_enum_of_a_later_vattd_is_its_number() -> None:
    assert to_plain(pb.Promise(state=77))["state"] == 77  # type: ignore[arg-type]


def test_what_is_set_reads_as_in_the_standard_mapping() -> None:
    event = pb.Event(kind="session_ended", tenant="chat", reason="exited")
    event.time.FromJsonString("2026-01-02T03:04:05Z")
    event.waited.FromSeconds(3)
    standard = MessageToDict(event, preserving_proto_field_name=True)
    assert standard.items() <= to_plain(event).items()
