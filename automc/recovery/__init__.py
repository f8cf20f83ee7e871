"""Models trained after they were compressed.

`recover` distils finalists for seconds and `fidelity` candidates for a few steps; `planning` fine-tunes for epochs, trainings of `training`
that are tried and stopped by `tuning` on Ray Tune. All train a `student`, by what `distil` says of the dense model.
"""
