"""`vattctl reserve`, `unreserve` and `tenants`: round trips, refusals, waiting."""

from __future__ import annotations

import grp
import os
import pwd
import signal
from collections.abc import Iterator

import grpc
import pytest

from tests.daemon import Vattd
from tests.raw_engine import RawEngine, reason_of
from tests.vattctl.command import audit, done, on_a_terminal, refused, running, tenants, vattctl
from vatt.v1 import vatt_pb2 as pb

MIB = 1 << 20
NOBODY = 65534


@pytest.fixture(scope="module")
def shared() -> Iterator[Vattd]:
    """For what changes nothing."""
    with Vattd("--pool-max", "64MiB") as vattd:
        yield vattd


def test_what_was_reserved_is_shown_and_kept_and_taken_back() -> None:
    with Vattd("--pool-max", "64MiB") as vattd:
        said = done(vattd, "reserve", "chat", "--min", "16MiB", "--max", "50%", "--weight", "3", "--hard")
        assert "min 16.0 MiB hard, max 32.0 MiB, weight 3; set by a command" in said
        assert "held" in said
        chat = tenants(vattd)["chat"]
        assert chat["guarantee"] == {
            "min_bytes": 16 * MIB,
            "max_bytes": 32 * MIB,
            "weight": 3,
            "min_mode": "MIN_MODE_HARD",
            "revision": 1,
        }
        assert chat["access"] == {"uids": [os.geteuid()], "gids": []}, "the user that runs vattd"
        assert chat["source"] == "command"
        assert chat["until"] is None
        assert chat["owner_uid"] is None
        done(vattd, "reserve", "chat", "--weight", "5")
        after = tenants(vattd)["chat"]["guarantee"]
        assert after == {**chat["guarantee"], "weight": 5, "revision": 2}, "what is not given stays as it was"

        assert vattd.stop() == 0
        vattd.start()
        assert tenants(vattd)["chat"]["guarantee"] == after, "it survives a restart"
        assert "nothing is reserved" in done(vattd, "unreserve", "chat")
        assert "chat" not in tenants(vattd)
        assert "nothing is reserved for a tenant 'chat'" in refused(vattd, "unreserve", "chat")


def test_a_max_of_none_is_no_max_and_soft_is_not_hard() -> None:
    with Vattd("--pool-max", "64MiB") as vattd:
        done(vattd, "reserve", "chat", "--min", "1MiB", "--max", "8MiB", "--hard")
        done(vattd, "reserve", "chat", "--max", "none", "--soft")
        guarantee = tenants(vattd)["chat"]["guarantee"]
        assert guarantee["max_bytes"] is None
        assert guarantee["min_mode"] == "MIN_MODE_SOFT"


@pytest.mark.parametrize("text", ["8M", "8MiB", "8mb", "8 MiB", "8.0m", "12.5%"])
def test_every_way_to_write_eight_mebibytes_is_the_same(shared: Vattd, text: str) -> None:
    done(shared, "reserve", "size", "--min", text)
    assert tenants(shared)["size"]["guarantee"]["min_bytes"] == 8 * MIB
    done(shared, "unreserve", "size")


def test_a_min_beyond_the_pool_is_told_by_itself_whatever_the_max_is() -> None:
    with Vattd("--pool-max", "64MiB") as vattd:
        words = (
            "a min of 96.0 MiB is more than the pool's 64.0 MiB: ask for less, or start vattd with a larger --pool-max"
        )
        assert words in refused(vattd, "reserve", "chat", "--min", "96MiB", "--max", "32MiB")
        done(vattd, "reserve", "chat", "--max", "32MiB")
        assert words in refused(vattd, "reserve", "chat", "--min", "96MiB")
        assert tenants(vattd)["chat"]["guarantee"]["max_bytes"] == 32 * MIB


def test_parts_of_an_odd_pool_that_are_a_hundred_percent_together_fit_it() -> None:
    with Vattd("--pool-max", str(65 * (64 << 10))) as vattd:
        done(vattd, "reserve", "one", "--min", "50%")
        done(vattd, "reserve", "other", "--min", "50%")
        assert tenants(vattd)["one"]["guarantee"]["min_bytes"] == 32 * (64 << 10)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["chat"], "nothing to set: write for example `vattctl reserve chat --min 8GiB"),
        (["chat", "--wait"], "nothing to set"),
        (["chat", "--min", "lots"], "'lots' is not a size: write for example 8GiB"),
        (["chat", "--min", "-8G"], "'-8G' is not a size: write for example 8GiB"),
        (["chat", "--min", "999999999999T"], "more than any machine has"),
        (["chat", "--min", "120%"], "'120%' is more than 100%"),
        (["chat", "--max", "5%%"], "write for example 50%, or none"),
        (["chat", "--max", "0"], "'0' is no max: write for example 8GiB, or none"),
        (["chat", "--max", "8 apples"], "is not a size: write for example 8GiB, 512MiB or 65536, or none"),
        (["chat", "--min", "8M", "--max", "4M"], "write for example --min 4M --max 8M"),
        (["chat", "--min", "50%", "--max", "25%"], "write for example --min 25% --max 50%"),
        (["chat", "--weight", "0"], "range 1<=x<=1000"),
        (["chat", "--weight", "1001"], "range 1<=x<=1000"),
        (["chat", "--allow", "no-such-user"], "there is no user 'no-such-user' here: write a user as 1000 or alice"),
        (["chat", "--allow", "@no-such-group"], "there is no group 'no-such-group' here"),
        (["chat", "--for", "soon"], "'soon' is not a length of time: write for example"),
        (["chat", "--min", "1M", "--for", "0"], "'0' is not 1 s to 10 years"),
        (["--wait", "chat", "--min", "1M"], "without a time, --wait is the last word"),
        (["Chat!", "--min", "1M"], "'Chat!' is not a tenant's name"),
    ],
)
def test_nonsense_is_a_usage_error_with_an_example(shared: Vattd, arguments: list[str], words: str) -> None:
    assert words in refused(shared, "reserve", *arguments, status=2)
    assert "chat" not in tenants(shared)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--hard"], "--hard says what becomes of a min, and chat has none: write for example --min 8GiB --hard"),
        (["--soft"], "chat has none: write for example --min 8GiB --soft"),
        (["--min", "0", "--hard"], "write for example --min 8GiB --hard"),
        (["--hard", "--weight", "2"], "write for example --min 8GiB --hard"),
        (["--max", "8MiB", "--wait"], "--wait is for a min, and chat has none: leave it out, or add --min 8GiB"),
        (["--min", "0", "--wait"], "--wait is for a min"),
        (["--for", "1h"], "nothing is reserved for chat, now or before: write for example --min 8GiB --for 2h"),
        (["--min", "8"], "'8' is 8 bytes, and a page has 64.0 KiB: write for example 8GiB"),
        (["--max", "8"], "'8' is 8 bytes, and a page has 64.0 KiB: write for example 8GiB"),
    ],
)
def test_what_would_have_no_effect_is_refused_with_what_to_type(
    shared: Vattd, arguments: list[str], words: str
) -> None:
    assert words in refused(shared, "reserve", "chat", *arguments)
    assert "chat" not in tenants(shared)


def test_what_is_about_a_min_is_taken_where_there_was_one_before() -> None:
    with Vattd("--pool-max", "64MiB") as vattd:
        done(vattd, "reserve", "chat", "--min", "1MiB", "--for", "1h")
        done(vattd, "reserve", "chat", "--hard", "--wait", "10s")
        assert tenants(vattd)["chat"]["guarantee"]["min_mode"] == "MIN_MODE_HARD"
        done(vattd, "reserve", "chat", "--for", "2h")
        done(vattd, "reserve", "chat", "--min", "0", "--soft")
        assert tenants(vattd)["chat"]["guarantee"]["min_mode"] == "MIN_MODE_SOFT"
        assert "--min 8GiB --hard" in refused(vattd, "reserve", "chat", "--hard")


def test_who_is_named_twice_is_allowed_once(shared: Vattd) -> None:
    done(shared, "reserve", "twice", "--allow", str(NOBODY), "--allow", str(NOBODY))
    assert tenants(shared)["twice"]["access"] == {"uids": [NOBODY], "gids": []}
    done(shared, "unreserve", "twice")


def test_a_max_below_what_is_leased_says_by_how_much_it_is_passed() -> None:
    with Vattd("--pool-max", "64MiB") as vattd, RawEngine(vattd.sockets, "chat") as engine:
        engine.lease(512)
        for said in (done(vattd, "reserve", "chat", "--max", "16MiB"), done(vattd, "tenants"), done(vattd, "status")):
            assert "over its max by 16.0 MiB: asked back, and no more is lent to it" in said
        assert tenants(vattd)["chat"]["leased_bytes"] > tenants(vattd)["chat"]["guarantee"]["max_bytes"]
        engine.detach()


def test_the_daemons_refusals_are_told_in_its_own_words_and_change_nothing() -> None:
    with Vattd("--pool-max", "64MiB") as vattd:
        done(vattd, "reserve", "chat", "--min", "40MiB", "--max", "48MiB")
        before = tenants(vattd)
        said = refused(vattd, "reserve", "batch", "--min", "32MiB")
        assert "72.0 MiB together (chat 40.0 MiB, batch 32.0 MiB), and the pool has 64.0 MiB: 8.00 MiB too much" in said
        assert "see `vattctl tenants`" in said
        assert "more than the max of 8.00 MiB" in refused(vattd, "reserve", "chat", "--max", "8MiB")
        assert "less than a page of 64.0 KiB" in refused(vattd, "reserve", "batch", "--max", "1KiB")
        assert tenants(vattd) == before


def test_a_tenant_of_the_configuration_file_says_so_and_has_that_again_after_unreserve(tmp_path: object) -> None:
    config = f"{tmp_path}/tenants.toml"
    with open(config, "w") as file:
        file.write('[tenants.chat]\nmin = "25%"\n')
    with Vattd("--pool-max", "64MiB", "--config", config) as vattd:
        assert tenants(vattd)["chat"]["source"] == "config"
        assert "in the configuration file: change it there" in refused(vattd, "unreserve", "chat")
        first = vattctl(vattd, "reserve", "chat", "--min", "8MiB")
        hint = " ".join(first.stderr.split())
        assert "from now on this reservation comes before the file, also in what you did not give" in hint
        assert "`vattctl unreserve chat` goes back to the file" in hint
        assert "configuration file" not in first.stdout
        assert tenants(vattd)["chat"]["source"] == "command"
        assert vattctl(vattd, "reserve", "chat", "--weight", "2").stderr == "", "said once"
        assert vattctl(vattd, "reserve", "batch", "--weight", "2").stderr == "", "it is in no file"
        said = done(vattd, "unreserve", "chat")
        assert "min 16.0 MiB soft; set by the configuration file" in said


def test_who_is_allowed_by_a_group_may_use_the_tenant_and_others_may_not() -> None:
    group = grp.getgrgid(os.getegid()).gr_name
    with Vattd("--pool-max", "64MiB") as vattd:
        done(vattd, "reserve", "ours", "--allow", f"@{group}", "--min", "1MiB")
        said = done(vattd, "reserve", "theirs", "--allow", str(NOBODY), "--allow", f"@{NOBODY}")
        nobody, nogroup = pwd.getpwuid(NOBODY).pw_name, grp.getgrgid(NOBODY).gr_name
        assert f"{nobody}, @{nogroup}" in said, "by name where there is one"
        with RawEngine(vattd.sockets, "ours") as engine:
            engine.detach()
        with pytest.raises(grpc.RpcError) as denied:
            RawEngine(vattd.sockets, "theirs")
        assert reason_of(denied.value) == "TENANT_DENIED"


def test_a_reservation_for_a_time_says_until_when_and_ends() -> None:
    with Vattd("--pool-max", "64MiB") as vattd:
        assert "1 h" in done(vattd, "reserve", "long", "--min", "1MiB", "--for", "1h")
        until = tenants(vattd)["long"]["until"]
        assert until.endswith("Z")
        done(vattd, "reserve", "long", "--weight", "2")
        assert tenants(vattd)["long"]["until"] == until, "what is not given stays as it was"
        done(vattd, "reserve", "long", "--for", "forever")
        assert tenants(vattd)["long"]["until"] is None
        done(vattd, "reserve", "short", "--min", "1MiB", "--for", "1s")
        while {tenant.name for tenant in vattd.status().tenants} != {"long"}:
            assert vattd.process.poll() is None


def test_wait_ends_when_the_min_is_held() -> None:
    with Vattd("--pool-max", "64MiB", "--reclaim-within", "10m") as vattd, RawEngine(vattd.sockets, "batch") as batch:
        runs = batch.lease(1000)
        with running(vattd, "reserve", "chat", "--min", "32MiB", "--hard", "--wait") as waiting:
            while not [tenant for tenant in vattd.status().tenants if tenant.promise.state == pb.Promise.STATE_PENDING]:
                assert waiting.poll() is None
            batch.give_back(runs)
            out, err = waiting.communicate(timeout=20)
            assert waiting.returncode == 0, err
            assert "held" in out
        batch.detach()


def test_a_wait_that_is_over_names_who_breaks_the_promise() -> None:
    arguments = ["--pool-max", "64MiB", "--reclaim-within", "100ms"]
    with Vattd(*arguments) as vattd, RawEngine(vattd.sockets, "batch") as batch:
        batch.lease(1000)
        said = refused(vattd, "reserve", "chat", "--min", "32MiB", "--hard", "--wait", "1s")
        assert "the min of chat is not held in time: broken by" in said
        assert f"{batch.key.session_id} (batch): 30.5 MiB missing" in said
        assert "The reservation stays" in said
        assert tenants(vattd)["chat"]["promise"]["broken_by"] == [batch.key.session_id]
        batch.detach()


def test_who_waits_at_a_terminal_sees_for_what_and_may_stop_it() -> None:
    arguments = ["--pool-max", "64MiB", "--reclaim-within", "10m"]
    with Vattd(*arguments) as vattd, RawEngine(vattd.sockets, "batch") as batch:
        batch.lease(1000)
        with on_a_terminal(vattd, "reserve", "chat", "--min", "32MiB", "--hard", "--wait") as terminal:
            terminal.read_until("30.5 MiB missing")
            terminal.process.send_signal(signal.SIGINT)
            terminal.read_until("stopped waiting: the reservation stays")
            assert terminal.wait() == 1
            assert "Traceback" not in terminal.seen
        assert tenants(vattd)["chat"]["promise"]["state"] == "STATE_PENDING"
        batch.detach()


def test_lent_pages_of_a_min_are_shown() -> None:
    with Vattd("--pool-max", "64MiB") as vattd, RawEngine(vattd.sockets, "batch") as batch:
        batch.lease(768)
        said = done(vattd, "reserve", "chat", "--min", "32MiB")
        assert "held, 16.0 MiB of it lent to others" in said
        assert "min is held, 16.0 MiB of it lent to others" in done(vattd, "tenants")
        batch.detach()


def test_what_changes_something_is_in_the_audit_log_with_who_typed_what() -> None:
    with Vattd("--pool-max", "64MiB") as vattd:
        done(vattd, "reserve", "chat", "--min", "1MiB")
        done(vattd, "tenants")
        refused(vattd, "unreserve", "batch")
        name = pwd.getpwuid(os.geteuid()).pw_name
        lines = [(line["verb"], line["caller"], line["outcome"]) for line in audit(vattd)]
        assert lines == [
            ("reserve", f"{name} (uid {os.geteuid()}) vattctl reserve", "done"),
            ("unreserve", f"{name} (uid {os.geteuid()}) vattctl unreserve", "TENANT_UNKNOWN"),
        ]


def test_a_tenant_that_somebody_used_first_stays_for_them_and_that_is_said() -> None:
    with Vattd("--pool-max", "64MiB") as vattd, RawEngine(vattd.sockets, "prod"):
        result = vattctl(vattd, "reserve", "prod", "--min", "8MiB")
        assert result.returncode == 0
        said = " ".join(result.stderr.split())
        assert f"prod stays for {pwd.getpwuid(os.getuid()).pw_name}, who named it first: --allow says who" in said
        assert "named it first" not in vattctl(vattd, "reserve", "prod", "--weight", "2").stderr, "it is set by now"
