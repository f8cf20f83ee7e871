"""What recording in MLflow costs a search: the same short search with and without it, in turn.

    python benchmarks/tracking.py [--pairs 5] [--trials 60]

Every search starts with an empty store, so that making it is counted; profile, database and predictor come from the cache after
the first search, which is not counted. The times are those of the whole command, start of Python and imports included.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

NOWHERE = ["--tracking-uri", ""]


def main() -> None:
    """Print the median times, their spread, and the share that recording takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("options", nargs="*", help="of automc search (default: --budget 60%%)")
    arguments = parser.parse_args()
    options = arguments.options or ["--budget", "60%"]
    times: dict[str, list[float]] = {"without": [], "with": []}
    with tempfile.TemporaryDirectory() as folder:
        common = ["--runs", folder, "--trials", str(arguments.trials), "--quiet", *options]
        searched("warm", common, NOWHERE)
        for pair in range(arguments.pairs):
            store = f"sqlite:///{Path(folder) / f'{pair}.db'}"
            times["without"].append(searched(f"without-{pair}", common, NOWHERE))
            times["with"].append(searched(f"with-{pair}", common, ["--tracking-uri", store]))
            print(
                f"pair {pair}: " + ", ".join(f"{name} MLflow {taken[-1]:.1f} s" for name, taken in times.items()),
                flush=True,
            )
    without, recorded = (statistics.median(taken) for taken in times.values())
    spread = (max(times["without"]) - min(times["without"])) / without
    print(
        f"medians of {arguments.pairs}: without {without:.1f} s, with {recorded:.1f} s: {100 * (recorded / without - 1):+.1f} %"
    )
    print(f"searches without MLflow differ by {100 * spread:.1f} %")


def searched(name: str, common: list[str], tracking: list[str]) -> float:
    """Seconds of one search."""
    begun = time.perf_counter()
    ended = subprocess.run(
        ["automc", "search", "--name", name, *common, *tracking], stdout=subprocess.DEVNULL, check=False
    )
    if ended.returncode not in (0, 3):
        raise SystemExit(f"automc search ended with {ended.returncode}")
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
