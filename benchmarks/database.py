"""The database of layer variants: seconds to make it, to read it back, to stitch a policy from it, and its size.

    python benchmarks/database.py [--model M --weights W --data D] [--levels 8] [--samples 2048]

Every channel group with that many keep counts, float and int8, and every rank of the default space. Stitching is timed over
50 random policies whose variants are in memory: that is what a search pays for a candidate before it is scored.
"""

from __future__ import annotations

import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import setting

from automc.calibrate import Lazily, calibrate
from automc.compression.apply import Stitcher
from automc.search_spaces.default import default

POLICIES = 50


def main() -> None:
    """Print the seconds of each step."""
    parser = setting.options(__doc__ or "")
    parser.add_argument("--levels", type=int, default=8)
    arguments = parser.parse_args()
    given = setting.load(arguments)
    space = default(given.traced.graph, channel_block=8, int8=True, levels=arguments.levels)
    ranges = tuple(tensor[:128] for tensor in given.calibration)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        stats = calibrate(given.traced, given.batches(arguments.samples), len(given.calibration[0]))
        calibrated = time.perf_counter()
        stitcher = Stitcher(given.traced, stats, ranges, folder=Path(folder))
        count = stitcher.database.build(space)
        built = time.perf_counter()
        size = sum(path.stat().st_size for path in Path(folder).iterdir())
        again = Stitcher(given.traced, Lazily(dict), ranges, folder=Path(folder))
        again.database.build(space)
        read = time.perf_counter()
    print(
        f"calibration {calibrated - start:.1f} s, {count} variants {built - calibrated:.1f} s, in all {built - start:.1f} s"
    )
    print(f"{size / 1e6:.1f} MB on disk, read back in {read - built:.1f} s")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")
    seconds = []
    for policy in space.decode(space.sample(POLICIES, np.random.default_rng(0))):
        begin = time.perf_counter()
        again.apply(policy)
        seconds.append(1e3 * (time.perf_counter() - begin))
    low, middle, high = np.percentile(seconds, (5, 50, 95))
    print(
        f"stitching a random policy: median {middle:.1f} ms (5 to 95 %: {low:.1f} to {high:.1f} ms), {POLICIES} policies"
    )


if __name__ == "__main__":
    main()
