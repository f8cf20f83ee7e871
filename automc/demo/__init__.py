"""The embedded default: a small residual network trained on real handwritten digits, with its data and weights."""
