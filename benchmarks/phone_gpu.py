"""The kernel model on phone GPUs that it was not made for: operators of TensorFlow Lite, measured on three phones by others.

    python benchmarks/phone_gpu.py FOLDER/phone_gpu_ops_us.csv.gz

The data are those of qed-usc/mobile-ml-benchmark: shapes, the delegate's kernel with what it fused, microseconds. Configurations repeat in the
data, so they are split by configuration, in five folds; each counts once, by the median of its measurements. Baselines on the same folds:
gradient boosting on the columns as they are, nn-Meter's forest, and a line on operations per kind.
"""

from __future__ import annotations

import argparse
import ast
import csv
import gzip
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import baselines
import numpy as np
from sklearn.ensemble import GradientBoostingRegressor

from automc.predict.kernel_model import KernelModel
from automc.predict.kernels import COLUMNS, KINDS, Kernels, Layouts
from automc.predict.roofline import Floats

FOLDS = 5
SLICES = Layouts(4, 1)
"""TensorFlow Lite's GPU delegate keeps activations in slices of four channels."""
_RAW = ("Input_shape", "Input_channel", "Output_shape", "Stride", "Kernel", "Filter", "Group", "FLOPS")


def main() -> None:
    """Print a line per phone and estimator."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with gzip.open(given.table, "rt") as file:
        rows = list(csv.DictReader(file))
    for phone in ("pixel4", "s10", "mi8se"):
        _report(phone, rows, given.seed)


def _report(phone: str, rows: list[dict[str, str]], seed: int) -> None:
    measured = _measured(phone, rows)
    spread = [np.abs(np.array(times) / np.median(times) - 1) for times in measured.values() if len(times) > 2]
    repeats = np.concatenate(spread)
    kernels = Kernels(np.array([_kernel(*key) for key in measured], dtype=np.int64))
    raw = np.array([_raw(*key) for key in measured])
    truth = np.array([np.median(times) for times in measured.values()])
    groups = {key: index for index, key in enumerate(sorted({key[:2] for key in measured}))}
    fold = np.random.default_rng(seed).permutation(len(groups))[[groups[key[:2]] for key in measured]] % FOLDS
    print(
        f"{phone}: {len(truth)} kernels of {len(groups)} configurations; repeats of one differ by {100 * np.median(repeats):.1f} % (median), {100 * np.mean(repeats <= 0.1):.0f} % within 10 %"
    )
    guesses: Mapping[str, Floats] = defaultdict(lambda: np.zeros(len(truth)))
    for held in range(FOLDS):
        seen, unseen = fold != held, fold == held
        known, asked, times = Kernels(kernels.rows[seen]), Kernels(kernels.rows[unseen]), truth[seen]
        model = KernelModel.fit(known, 1e-6 * times, SLICES, 1)
        guesses["automc"][unseen] = 1e6 * model.predict(asked, use_exact=False)
        boosted = GradientBoostingRegressor(random_state=0, n_estimators=300, max_depth=5).fit(raw[seen], np.log(times))
        guesses["gradient boosting"][unseen] = np.exp(boosted.predict(raw[unseen]))
        for name, estimate in baselines.ESTIMATORS.items():
            guesses[name][unseen] = estimate(known, times, asked)
    for name, guess in guesses.items():
        error = np.abs(guess / truth - 1)
        print(
            f"    {name:<18} median {100 * np.median(error):5.1f} %, within 10 %: {100 * np.mean(error <= 0.1):3.0f} %, MAPE {100 * error.mean():5.1f} %"
        )


def _measured(phone: str, rows: list[dict[str, str]]) -> dict[tuple[str, str, str], list[float]]:
    """(operation, shapes, kernel with what it fused) -> microseconds."""
    found: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for row in rows:
        kernel = re.sub(r"_\d+(?=$|_)", "", row[f"{phone}|gpu|kernel"])
        if kernel and float(row[f"{phone}|gpu|float"] or 0) > 0:
            found[row["operation"], row["feature"], kernel].append(float(row[f"{phone}|gpu|float"]))
    return found


def _raw(operation: str, feature: str, kernel: str) -> list[float]:
    """The columns as they are."""
    shapes = ast.literal_eval(feature)
    return [float(sum(map(ord, operation))), *(_number(shapes[name]) for name in _RAW)]


def _number(text: str | int) -> float:
    return float(text) if str(text).replace(".", "").isdigit() else 0.0


def _kernel(operation: str, feature: str, kernel: str) -> list[int]:
    """The row of COLUMNS."""
    shapes = {name: int(_number(text)) for name, text in ast.literal_eval(feature).items()}
    side, cin, out, cout = (shapes[name] for name in ("Input_shape", "Input_channel", "Output_shape", "Filter"))
    window, stride, groups = shapes["Kernel"] ** 2, max(shapes["Stride"], 1), max(shapes["Group"], 1)
    kind = "conv" if window > 1 else "pointwise"
    if operation == "FULLY_CONNECTED":
        kind, side, out, window = "linear", 1, 1, 1
    elif operation == "DEPTHWISE_CONV_2D":
        kind, cout, groups = "depthwise", cin, cin
    elif operation == "CONV_2D_GROUP":
        kind = "grouped"
    elif operation == "MEAN":
        kind, out, cout, groups, window = "pool", 1, cin, cin, side * side
    elif "POOL" in operation:
        kind, cout, groups = "pool", cin, cin
    elif operation == "CONCATENATION":
        kind, groups, window = "concat", cin, shapes["Kernel"]
    elif "winograd" in kernel:
        kind = "winograd"
    fused = sum("add" in link or "mul" in link for link in kernel.split("_linked_")[1:])
    row: dict[str, int] = {
        "kind": KINDS.index(kind), "cin": cin, "cout": cout, "window": window, "stride": stride, "in_positions": side**2,
        "out_positions": out**2, "groups": groups, "fused": fused,
    }  # fmt: skip
    return [row.get(column, 0) for column in COLUMNS]


if __name__ == "__main__":
    main()
