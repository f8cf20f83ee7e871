"""The live app: watch running searches, explore and compare recorded ones, ask for other budgets. Reads runs, writes nothing."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from automc.errors import AutomcError
from automc.rundir import RunDir, runs_in
from automc.trial import Trial

from . import panels
from .provisional import Shown, read

__all__ = ["draw"]

REFRESH_S = 2.0
_KNOBS = {"channels": "prune", "rank": "low_rank", "zeros": "sparsify", "bits": "quantize"}
_STAGES = ["search", "finalist", "recovered"]


def draw(folder: Path) -> None:
    """The page over the runs in `folder`."""
    st.set_page_config(page_title="automc", layout="wide")
    names = [run.name for run in runs_in(folder)]
    if not names:
        st.info(f"There are no runs in {folder}. `automc search --budget 50ms` makes one.")
        return
    with st.sidebar:
        name = st.selectbox("Run", names)
        others = st.multiselect("Compare with", [other for other in names if other != name], placeholder="no other")
        wanted = _filter()
    try:
        _page(RunDir(folder / name), wanted)
        if others:
            st.header("Side by side")
            panels.compare([read(RunDir(folder / other)) for other in (name, *others)])
    except AutomcError as error:
        st.error(str(error))


def _filter() -> panels.Wanted:
    st.subheader("Trials")
    stages = st.multiselect("of the stage", _STAGES, placeholder="any")
    knobs = st.multiselect("that change", list(_KNOBS), placeholder="anything")
    least = st.number_input("with a score of at least", value=None, format="%.4f", placeholder="anything")

    def wanted(trial: Trial) -> bool:
        changed = {spec.knob for _, spec in trial.policy}
        in_stage = not stages or trial.stage in stages
        scored = least is None or (trial.score is not None and trial.score >= least)
        return in_stage and scored and all(_KNOBS[knob] in changed for knob in knobs)

    return wanted


def _page(run: RunDir, wanted: panels.Wanted) -> None:
    shown = read(run)
    running = shown.state == "running"
    st.title(run.name)
    st.fragment(lambda: _watched(run, wanted, running), run_every=REFRESH_S if running else None)()
    if shown.summary is None:
        return
    st.header("Another budget")
    st.fragment(lambda: _asked(run))()
    st.header("Take it home")
    panels.files(shown)
    st.header("Layer by layer")
    panels.layers(shown.summary, shown.tables)
    st.header("The search")
    panels.progress(shown.summary, shown.trials)


def _watched(run: RunDir, wanted: panels.Wanted, running: bool) -> None:
    """What is drawn anew every few seconds while the search runs, and once more with the rest of the page as it ends."""
    shown = read(run)
    if running and shown.state != "running":
        st.rerun()
    panels.state(shown)
    if shown.summary is not None:
        panels.front(shown, shown.summary, wanted)


def _asked(run: RunDir) -> None:
    """Drawn anew as the slider moves, without the rest of the page."""
    shown: Shown = read(run)
    if shown.summary is not None:
        panels.budget(shown, shown.summary)
