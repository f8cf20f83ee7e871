"""The sections of the report on single layers: where the time goes, and how much each choice alone hurts."""

from __future__ import annotations

from collections.abc import Iterator

from automc.result import Summary
from automc.tables import Tables

from . import by_layer, page, words

__all__ = ["layer_sections"]


def layer_sections(summary: Summary, tables: Tables) -> Iterator[str]:
    """Sections as HTML; those of which the run recorded nothing are left out."""
    chosen = summary.best or summary.smallest
    if chosen is not None and by_layer.latency_rows(tables, chosen.policy):
        yield page.section("Where the time goes, layer by layer", *_latency(summary, tables))
    if by_layer.sensitivity_rows(tables):
        yield page.section("What each choice alone hurts", *_sensitivity(tables))


def _latency(summary: Summary, tables: Tables) -> Iterator[str]:
    chosen = summary.best or summary.smallest or summary.dense
    shares = tables.shares(chosen.policy)
    yield page.paragraph(
        "Predicted from kernels that were measured on the device; what stands between layers is not in these figures."
    )
    yield page.figure(by_layer.latency(tables, chosen.policy), "layers")
    rows = [
        (
            name,
            words.known("latency_s", before),
            words.known("latency_s", after),
            words.change(before, after),
            f"{100 * shares[name]:.1f} %",
        )
        for name, before, after in by_layer.latency_rows(tables, chosen.policy)
    ]
    heads = ("layer", "dense", "compressed", "change", "share of compressed")
    yield page.details(f"The same as a table, {len(rows)} rows", page.table(heads, rows))


def _sensitivity(tables: Tables) -> Iterator[str]:
    yield page.paragraph(
        "Divergence from the dense model's outputs with this choice alone and everything else dense: the further right, the "
        "more it hurts. A layer that was left alone although it takes long stands far to the right here."
    )
    yield page.figure(by_layer.sensitivity(tables), "sensitivity")
    rows = [(target, knob, label, f"{loss:.3g}") for target, knob, label, loss in by_layer.sensitivity_rows(tables)]
    heads = ("layer or channel group", "knob", "choice", "loss (nats per sample)")
    yield page.details(f"The same as a table, {len(rows)} rows", page.table(heads, rows, words=(1, 2)))
