"""Measure an exported model as a stranger would: ONNX Runtime and NumPy alone, nothing of automc.

    python benchmarks/stranger.py runs/NAME/best/model.onnx            latency of one batch on one thread
    python benchmarks/stranger.py runs/NAME/best/model.onnx test.npz   and its accuracy on x, y of that file

The digits of the built-in example are written to test.npz by

    python -c "import numpy; from automc.demo.digits import digits; x, y = digits(400).test.rows(digits(400).test.index); numpy.savez('test.npz', x=x, y=y)"
"""

from __future__ import annotations

import sys
import time

import numpy as np
import onnxruntime

ROUNDS = 100


def main(model: str, data: str | None = None) -> None:
    """Print the median and the 5th and 95th percentile of the latency, and the accuracy."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    entry = session.get_inputs()[0]
    batch = np.random.default_rng(0).normal(size=entry.shape).astype(np.float32)
    for _ in range(10):
        session.run(None, {entry.name: batch})
    seconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        session.run(None, {entry.name: batch})
        seconds.append(time.perf_counter() - start)
    low, median, high = 1e3 * np.percentile(seconds, [5, 50, 95])
    print(
        f"batch {entry.shape[0]}: median {median:.3f} ms (5 to 95 %: {low:.3f} to {high:.3f} ms), {ROUNDS} runs, one thread"
    )
    if data is not None:
        loaded = np.load(data)
        print(f"accuracy {100 * accuracy(session, loaded['x'], loaded['y']):.2f} % on {len(loaded['y'])} samples")


def accuracy(session: onnxruntime.InferenceSession, x: np.ndarray, y: np.ndarray) -> float:
    """Share of (n,) labels that the model's largest output gets right; the last batch is filled up."""
    entry = session.get_inputs()[0]
    size, right = entry.shape[0], 0
    for start in range(0, len(x), size):
        rows = np.arange(start, start + size) % len(x)
        logits = session.run(None, {entry.name: x[rows].astype(np.float32)})[0]
        right += int((logits.argmax(1) == y[rows])[: len(x) - start].sum())
    return right / len(x)


if __name__ == "__main__":
    main(*sys.argv[1:])
