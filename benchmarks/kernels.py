"""Single kernels of held-out configurations on ONNX Runtime, with what else predicts kernels, on the same data.

    python benchmarks/kernels.py FOLDER [--networks resnet18@224 mobilenet_v2@224 vit_tiny@224] [--most 400]

FOLDER holds the profiles of benchmarks/profiles.py, measured now where they are missing: at most `--most` different kernels of the first are
learned from, and the kernels of the second, measured in a session of its own, that are not among them are asked for. The noise floor is how far
apart the two sessions are on kernels of the same configuration, once for those learned from as a whole: no estimator can be shown to be
better. Baselines get the same kernels: nn-Meter's forest per kind, a line on FLOPs per kind, and a lookup table with interpolation per kind.
"""

from __future__ import annotations

import argparse

import baselines
import numpy as np
import profiles

from automc.predict.kernel_model import KernelModel, distinct
from automc.predict.kernels import Kernels, Layouts
from automc.predict.model import Samples, Setting
from automc.predict.roofline import Floats
from automc.predict.structure import read_structure


def main() -> None:
    """Print a line per network and estimator."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    profiles.add_arguments(parser)
    parser.add_argument("--most", type=int, default=400)
    given = parser.parse_args()
    for case in profiles.cases(given):
        _report(case, given.most)


def _report(case: profiles.Case, most: int) -> None:
    can = case.profile.capabilities
    layouts = Layouts(can.channel_block, can.channel_multiple)
    structure = read_structure(case.dense_onnx, case.offered.graph)
    setting = Setting(case.offered.graph, case.offered.space, structure, layouts, 1)
    known, times = distinct(*Samples.of(case.profile, setting).all_kernels())
    asked, truth = distinct(*Samples.of(case.unseen, setting).all_kernels())
    rows = np.random.default_rng(0).permutation(len(known))[:most]
    known, times = Kernels(known.rows[rows]), times[rows]
    before = {tuple(row): seconds for row, seconds in zip(known.rows.tolist(), times.tolist(), strict=True)}
    again = np.array([before.get(tuple(row), np.nan) for row in asked.rows.tolist()])
    both = ~np.isnan(again)
    drift = float(np.median(again[both] / truth[both]))
    noise = float(np.mean(np.abs(drift * truth[both] / again[both] - 1)))
    asked, truth = Kernels(asked.rows[~both]), drift * truth[~both]
    print(
        f"{case.name}: {len(known)} kernels learned from, {len(truth)} others; the sessions differ by {100 * noise:.1f} % on {both.sum()} kernels of both",
        flush=True,
    )
    model = KernelModel.fit(known, times, layouts, 1)
    _line("automc", model.predict(asked, use_exact=False), truth)
    for name, estimate in baselines.ESTIMATORS.items():
        _line(name, estimate(known, times, asked), truth)


def _line(name: str, guess: Floats, truth: Floats) -> None:
    error = np.abs(guess / truth - 1)
    print(
        f"    {name:<18} MAPE {100 * error.mean():5.1f} %, median {100 * np.median(error):5.1f} %, within 10 %: {100 * np.mean(error <= 0.1):3.0f} %",
        flush=True,
    )


if __name__ == "__main__":
    main()
