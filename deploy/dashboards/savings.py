"""What paging saves, beside one baseline at a time.

A baseline is what another way of holding the same tokens would take. Three of them answer three questions, so no panel
has two, and nothing adds them up.
"""

from __future__ import annotations

from deploy.dashboards.panels import BLUE, GREEN, GREY, Line, Panel, graph

STATIC, PAGED16, PAGED256 = "static_reservation", "paged16", "paged256"

_MEANINGS = {
    STATIC: "a cache without paging, where every slot has its full context from the start",
    PAGED16: "PagedAttention in blocks of 16 tokens, for the same lengths",
    PAGED256: "PagedAttention in blocks of 256 tokens, for the same lengths",
}
_ADVICE = {
    STATIC: "This is memory that other tenants can use. Little saved means that requests fill their whole context: "
    "then a longer context or fewer slots is what to change, not vattd.",
    PAGED16: "Hardly any block is smaller, so near zero is good. Far below it, and growing, pages are mapped that no "
    "token fills: look at the tenant's utilization, then choose a finer layout or page size (docs/design.md, Layouts).",
    PAGED256: "Below zero, coarse blocks would have taken less: the layout maps too much a step. Choose a finer one "
    "(docs/design.md, Layouts).",
}


def by_tenant(where: str) -> list[Panel]:
    """Saved bytes, a panel for each baseline."""
    return [
        graph(
            f"Saved against {baseline}",
            f"Bytes that {_MEANINGS[baseline]}, would take, less those that are mapped, by the engines' reports. "
            + _ADVICE[baseline],
            Line(f'sum by (tenant) (vattd_tenant_saved_bytes{{{where}, baseline="{baseline}"}})', "{{tenant}}"),
            unit="bytes",
        )
        for baseline in _MEANINGS
    ]


def of_one(where: str) -> list[Panel]:
    """Mapped bytes beside what the baseline would take, a panel for each."""
    return [
        graph(
            f"Mapped, and {baseline}",
            f"What is mapped, beside {_MEANINGS[baseline]}: the distance is what is saved. " + _ADVICE[baseline],
            Line(f'sum(vattd_tenant_baseline_bytes{{{where}, baseline="{baseline}"}})', baseline, GREY),
            Line(f"sum(vattd_tenant_mapped_bytes{{{where}}})", "mapped", BLUE),
            Line(f'sum(vattd_tenant_saved_bytes{{{where}, baseline="{baseline}"}})', "saved", GREEN),
            unit="bytes",
        )
        for baseline in _MEANINGS
    ]
