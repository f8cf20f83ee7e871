"""The sections of the report on single layers: where the time goes, and how much each choice alone hurts."""

from __future__ import annotations

from collections.abc import Iterator

from automc import wording
from automc.policy import Policy
from automc.result import Summary
from automc.tables import Tables

from . import by_layer, page

__all__ = ["layer_sections"]


def layer_sections(summary: Summary, tables: Tables) -> Iterator[str]:
    """Sections as HTML; those of which the run recorded nothing are left out."""
    chosen = summary.best or summary.smallest
    if chosen is not None and by_layer.cost_rows(tables, chosen.policy):
        yield page.section("Where the time goes, layer by layer", *_latency(summary, tables, chosen.policy))
    if chosen is not None and by_layer.cost_rows(tables, chosen.policy, "energy_j"):
        yield page.section("Where the energy goes, layer by layer", *_energy(summary, tables, chosen.policy))
    if by_layer.sensitivity_rows(tables):
        yield page.section("What each choice alone hurts", *_sensitivity(tables))


def _latency(summary: Summary, tables: Tables, policy: Policy) -> Iterator[str]:
    yield page.paragraph(
        f"As {summary.priced}: what stands between layers is not in these figures."
        if summary.priced == "simulated"
        else "Predicted from kernels that were measured on the device; what stands between layers is not in these figures."
    )
    yield page.figure(by_layer.latency(tables, policy), "layers")
    yield _table(tables, policy, "latency_s")


def _energy(summary: Summary, tables: Tables, policy: Policy) -> Iterator[str]:
    yield page.paragraph(
        "As simulated: what the closed form of the device counts for each layer."
        if summary.priced == "simulated"
        else "The predicted time of each layer at the power that the device was measured or stated to draw above idle."
    )
    yield page.figure(by_layer.energy(tables, policy), "energy")
    yield _table(tables, policy, "energy_j")


def _table(tables: Tables, policy: Policy, metric: str) -> str:
    found = by_layer.cost_rows(tables, policy, metric)
    whole = sum(after for _, _, after in found) or 1.0
    rows = [
        (
            name,
            wording.quantity(metric, before),
            wording.quantity(metric, after),
            wording.relative(before, after),
            f"{100 * after / whole:.1f} %",
        )
        for name, before, after in found
    ]
    heads = ("layer", "dense", "compressed", "change", "share of compressed")
    return page.details(f"The same as a table, {len(rows)} rows", page.table(heads, rows))


def _sensitivity(tables: Tables) -> Iterator[str]:
    yield page.paragraph(
        "Divergence from the dense model's outputs with this choice alone and everything else dense: the further right, the "
        "more it hurts. A layer that was left alone although it takes long stands far to the right here."
    )
    yield page.figure(by_layer.sensitivity(tables), "sensitivity")
    rows = [(target, knob, label, f"{loss:.3g}") for target, knob, label, loss in by_layer.sensitivity_rows(tables)]
    heads = ("layer or channel group", "knob", "choice", "loss (nats per sample)")
    yield page.details(f"The same as a table, {len(rows)} rows", page.table(heads, rows, words=(1, 2)))
