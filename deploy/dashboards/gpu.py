"""One vattd and its device: everything that it tells about itself."""

from __future__ import annotations

from deploy.dashboards.board import Board, Row, Section, Variable
from deploy.dashboards.gpu_inside import driver, recovery, vattd_itself
from deploy.dashboards.panels import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PALE,
    PURPLE,
    RED,
    TEAL,
    YELLOW,
    Line,
    Panel,
    figure,
    graph,
)
from deploy.dashboards.queries import or_none, or_zero, quantile, rate, rate_of_bytes

HERE = 'instance="$instance"'
LEASED = f'sum(vattd_pool_bytes{{state="leased", {HERE}}})'
POOL = f"sum(vattd_pool_bytes{{{HERE}}})"

INSTANCE = Variable("instance", "GPU", "label_values(vattd_build_info, instance)", several=False)

STATE_COLOURS = {
    "leased": BLUE,
    "clean": GREEN,
    "dirty": YELLOW,
    "scrubbing": PURPLE,
    "creating": TEAL,
    "destroying": ORANGE,
    "quarantined": RED,
    "unbacked": PALE,
}


def gpu() -> Board:
    return Board(
        name="gpu",
        title="vattd / one GPU",
        text="One vattd: its device's memory, its pool, what it lends and takes back, its driver, and its own process.",
        variables=[INSTANCE],
        sections=[
            Section("Now", [Row(_figures(), height=4, columns=8)]),
            Section("Memory", [Row(_memory(), height=8, columns=2)]),
            Section("Leasing", [Row(_leasing(), height=8, columns=3)]),
            Section("Promises and reclaim", [Row(_reclaim(), height=8, columns=3)]),
            Section("Driver", [Row(driver(HERE), height=8, columns=3)]),
            Section("Sessions and recovery", [Row(recovery(HERE), height=8, columns=3)]),
            Section("vattd itself", [Row(vattd_itself(HERE), height=8, columns=3)]),
        ],
    )


def _figures() -> list[Panel]:
    state = (
        f"(max(vattd_device_lost{{{HERE}}}) == 1) * 4 or (max(vattd_device_short{{{HERE}}}) == 1) * 3 "
        f"or (max(vattd_draining{{{HERE}}}) == 1) * 2 or max(up{{{HERE}}})"
    )
    return [
        figure(
            "State",
            "down: `vattctl status` on its machine, then start it. draining: an operator's doing, `vattctl drain "
            "--resume` ends it. device short: other programs have the memory. device lost: `vattctl doctor`, and the "
            "driver's log.",
            state,
            words={
                0: ("down", RED),
                1: ("serving", GREEN),
                2: ("draining", ORANGE),
                3: ("device short", ORANGE),
                4: ("device lost", RED),
            },
        ),
        figure(
            "Pool leased",
            "Too full only if leases wait or are refused as well.",
            f"{LEASED} / {POOL}",
            unit="percentunit",
            steps=[(0.95, ORANGE)],
        ),
        figure("Pool limit", "--pool-max: the most that vattd lends.", POOL, unit="bytes"),
        figure(
            "Most ever leased",
            "In this vattd's life. Far below the limit for weeks: the pool may be smaller.",
            f"max(vattd_pool_peak_leased_bytes{{{HERE}}})",
            unit="bytes",
        ),
        figure(
            "Other programs",
            "Device memory that is neither free nor vattd's: weights of models, contexts, other processes. The pool "
            "cannot have it.",
            f"max(vattd_device_other_bytes{{{HERE}}})",
            unit="bytes",
        ),
        figure(
            "Sessions",
            "Attached engine processes; `vattctl status` lists them.",
            or_zero(f"sum(vattd_sessions{{{HERE}}})"),
        ),
        figure(
            "Longest wait",
            "How long the first of the queued requests has waited. `vattctl tenants` says whose it is.",
            or_zero(f"max(vattd_tenant_longest_wait_seconds{{{HERE}}})"),
            unit="s",
            steps=[(10, ORANGE), (60, RED)],
        ),
        figure(
            "Promises broken",
            "Tenants without what they were promised: `vattctl tenants` says by whom.",
            or_zero(f"sum(vattd_tenant_promise_broken{{{HERE}}})"),
            steps=[(1, RED)],
        ),
    ]


def _memory() -> list[Panel]:
    pages = f"sum(vattd_device_pages_bytes{{{HERE}}})"
    states = "vattd_pool_bytes{" + HERE + ', state="%s"}'
    return [
        graph(
            "Where the device's memory is",
            "Leased to engines, kept by vattd ready to lend, taken by other programs, free. Idle pages go back to the "
            "device after --idle-after; at once with `vattctl shrink`.",
            Line(LEASED, "leased", BLUE),
            Line(f"clamp_min({pages} - {LEASED}, 0)", "ready to lend", TEAL),
            Line(f"sum(vattd_device_other_bytes{{{HERE}}})", "other programs", ORANGE),
            Line(f"sum(vattd_device_free_bytes{{{HERE}}})", "free", PALE),
            unit="bytes",
            stacked=True,
        ),
        graph(
            "Pool, by state of its pages",
            "The sum is the pool's limit. quarantined that stays: pages that somebody may still write to, see `vattctl "
            "status` and `vattctl events`. Much scrubbing or destroying: pages change tenants often.",
            *(Line(f"sum({states % state})", state, colour) for state, colour in STATE_COLOURS.items()),
            unit="bytes",
            stacked=True,
        ),
        graph(
            "Leased, by tenant",
            "Who has the pool. Choose one in the tenants' table of the fleet to see what it does with it.",
            Line(f"sum by (tenant) (vattd_tenant_leased_bytes{{{HERE}}})", "{{tenant}}"),
            unit="bytes",
            stacked=True,
        ),
        graph(
            "Leased, mapped, filled with tokens",
            "By the engines' reports. leased over mapped is what engines keep at hand; mapped over tokens is mapped "
            "ahead, or kept of finished requests. Both come back when asked: `vattctl shrink --ask-engines`.",
            Line(LEASED, "leased", BLUE),
            Line(f"sum(vattd_tenant_mapped_bytes{{{HERE}}})", "mapped", TEAL),
            Line(f"sum(vattd_tenant_token_bytes{{{HERE}}})", "tokens", GREEN),
            unit="bytes",
        ),
    ]


def _leasing() -> list[Panel]:
    return [
        graph(
            "Leases granted, by purpose",
            "admit: new requests. grow: running ones. ahead: the library, before anybody needs it.",
            Line(rate("vattd_leases_total", HERE, "purpose"), "{{purpose}}"),
            unit="ops",
        ),
        graph(
            "Lent, bytes a second, by purpose",
            "Small leases at a high rate cost round trips: engines could take more at a time.",
            Line(rate_of_bytes("vattd_lease_pages_total", HERE, "purpose"), "{{purpose}}"),
            unit="binBps",
        ),
        graph(
            "Refused leases, by reason",
            "POOL_EXHAUSTED: too few free pages, engines preempt. LIMIT_EXCEEDED: above a tenant's max. "
            "WAIT_HOPELESS: could never be met beside the others' promises. OUT_OF_MEMORY: the device is short.",
            Line(or_none(rate("vattd_lease_refusals_total", HERE, "reason"), "reason"), "{{reason}}"),
            unit="ops",
        ),
        graph(
            "How long vattd takes to answer, 99th percentile",
            "From the request to the answer, inside vattd, queueing included. grow and ahead never queue: where they "
            "take long, pages had to be made first, and a larger --headroom helps.",
            Line(quantile(0.99, "vattd_lease_duration_seconds", HERE, "purpose"), "{{purpose}}"),
            unit="s",
        ),
        graph(
            "How long new requests wait",
            "Time in the queue of ADMIT leases that were granted, 0 included.",
            Line(quantile(0.5, "vattd_lease_wait_seconds", HERE), "median", TEAL),
            Line(quantile(0.99, "vattd_lease_wait_seconds", HERE), "99th percentile", ORANGE),
            unit="s",
        ),
        graph(
            "Asked for by leases that wait, by tenant",
            "Beside the pool's limit: a request of nearly the whole pool waits until nearly all of it is free.",
            Line(f"sum by (tenant) (vattd_tenant_waiting_bytes{{{HERE}}})", "{{tenant}}"),
            unit="bytes",
        ),
    ]


def _reclaim() -> list[Panel]:
    return [
        graph(
            "Reclaim: asked, answered, ignored",
            "How often sessions were asked for pages. ignored: an engine does not answer in --reclaim-within. `vattctl "
            "status` shows whose are overdue, `vattctl evict SESSION` asks for all, with --kill ends it.",
            Line(rate("vattd_reclaims_asked_total", HERE), "asked", BLUE),
            Line(rate("vattd_reclaims_answered_total", HERE), "answered", GREEN),
            Line(rate("vattd_reclaims_ignored_total", HERE), "ignored", RED),
            unit="ops",
        ),
        graph(
            "Asked back, bytes a second",
            "Much of it, always: mins are used in turn, or the pool is small. Weights and maxes calm it.",
            Line(rate_of_bytes("vattd_reclaim_pages_asked_total", HERE), "asked back", BLUE),
            unit="binBps",
        ),
        graph(
            "Missing of what was promised, by tenant",
            "Asked for within the min, or kept for a hard one, and not there. A moment is how soft mins work; for "
            "longer than --reclaim-within, somebody does not give back.",
            Line(f"sum by (tenant) (vattd_tenant_missing_bytes{{{HERE}}})", "{{tenant}}"),
            unit="bytes",
        ),
        graph(
            "Promised, and kept free",
            "The sum of all mins, and what is set aside of hard ones and lent to nobody. Much kept free, and leases "
            "refused: make hard mins soft (`vattctl reserve TENANT --soft`).",
            Line(f"sum(vattd_tenant_min_bytes{{{HERE}}})", "mins", BLUE),
            Line(f"sum(vattd_pool_kept_free_bytes{{{HERE}}})", "kept free", GREY),
            unit="bytes",
        ),
        graph(
            "Sessions killed",
            "By --reclaim-kill-after, for a broken promise. `vattctl events` says which.",
            Line(rate("vattd_sessions_killed_total", HERE), "killed", RED),
            unit="ops",
        ),
        graph(
            "Events, by kind",
            "What happens, as `vattctl events -f` tells it.",
            Line(rate("vattd_events_total", HERE, "kind"), "{{kind}}"),
            unit="ops",
        ),
    ]
