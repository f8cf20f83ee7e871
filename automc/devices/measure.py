"""The measuring protocol: interleaved rounds between sentinels, medians of round medians, and how repeatable they are.

Interleaving exposes every model to the same drift (clock rates, heat, neighbours), so ratios are sound even where the machine is
not quiet; the sentinel, a fixed computation between the visits, tells when it was not. Where models are compared it serves as a control
variate: what a visit took more because the machine was slow at that moment, by a regression over all visits, is taken out.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from automc.devices.exclusive import LOCK_TIMEOUT_S, alone, pinned
from automc.devices.quiet import wait_until_quiet

__all__ = ["COMPARING", "SENTINEL_TOLERANCE", "Measurement", "Protocol", "fixed_work", "interleave"]

SENTINEL_TOLERANCE = 0.15
"""A round is discarded when the sentinel was slower beside its visits, on average, than at its best by more than this share."""

TOLERATED_INTERRUPTIONS = 0.1
"""Share of timings that may be processor time without a note."""

COMPARING: Mapping[str, Any] = {"retries": 3, "min_time_s": 0.02, "precision": 0.01, "least_rounds": 3}
"""Options of the protocol for many models that are compared with each other: short visits, and rounds until ratios are known, in the time there is."""

_MOST_ROUNDS = 4
"""Times the rounds that were asked for, at most, where `Protocol.precision` asks for more."""
_MOSTLY = 0.75
"""Where so many of the rounds beyond those that were asked for are quiet, the others are left out."""
_SENTINEL_NOISE = 0.02
"""What the sentinel itself repeats to, as a fraction: the slope of the regression is drawn to 0 where it varies by no more."""
_STEEPEST = 1.5
_BOOTSTRAPS = 1000
_ENOUGH = 12
"""Rounds of which the bootstrap knows the interval of the median: of 7 it holds the median in 86 % of all cases, of 12 in 93 %."""
_WIDER = {2: 5.8, 3: 0.81, 4: 0.24, 5: 0.05}
"""Rounds -> by how many times their range it is to be widened on either side, for the median of normal ones to be in it in 95 % of all cases."""
_SPLITS = 50


@dataclass(frozen=True)
class Measurement:
    """Rounds of several models, measured interleaved.

    Attributes:
        rounds_s: model name -> one value per round, the median of that round's runs, in seconds.
        noisy: too many rounds were disturbed, so disturbed ones are among them, or something else went on: no core was idle, or another
            measurement held the lock.
        notes: what the protocol asks for and could not have (lock, pinning, rounds).
        sentinel_s: the sentinel between the visits, the discarded rounds included.
        beside_s: model name -> per round the sentinel beside that visit (geometric mean of the one before and the one after);
            empty where it was not noted.
    """

    rounds_s: Mapping[str, tuple[float, ...]]
    noisy: bool = False
    notes: tuple[str, ...] = ()
    sentinel_s: tuple[float, ...] = ()
    beside_s: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    seed: int = field(default=0, repr=False)

    def median_s(self, name: str) -> float:
        """Latency of a model: the median over rounds of the round medians."""
        return float(np.median(self.rounds_s[name]))

    def interval_s(self, name: str) -> tuple[float, float]:
        """95 % interval of `median_s(name)`, over rounds: by bootstrap where there are _ENOUGH of them, below that by order statistics.

        From 9 rounds on those are the second least and the second greatest, from 6 on the least and the greatest (the median is between them in
        1 - 2^(1 - n) of all cases). Fewer than 6 rounds span too little whatever one takes: their range is widened as normal ones need it.
        One round has no interval; its value stands for both ends.
        """
        values = np.asarray(self.rounds_s[name])
        if len(values) < _ENOUGH:
            skipped = 1 if len(values) >= 9 else 0
            low, high = np.sort(values)[[skipped, -1 - skipped]]
            wider = _WIDER.get(len(values), 0.0) * (high - low)
            return max(float(low - wider), 0.0), float(high + wider)
        rng = np.random.default_rng(self.seed)
        medians = np.median(rng.choice(values, (_BOOTSTRAPS, len(values))), axis=1)
        low, high = np.quantile(medians, (0.025, 0.975))
        return float(low), float(high)

    @cached_property
    def noise_floor(self) -> float:
        """Split-half repeatability: how far apart the medians of two random halves of the rounds lie, as a fraction.

        The mean over models and random splits. No predictor can be shown to be better than about this.
        """
        rng = np.random.default_rng(self.seed)
        values = np.array([self.rounds_s[name] for name in self.rounds_s])
        half = values.shape[1] // 2
        if half == 0:
            return float("nan")
        return float(np.mean([_split(values[:, rng.permutation(values.shape[1])], half) for _ in range(_SPLITS)]))

    @cached_property
    def steadied(self) -> Measurement:
        """The same rounds as if the machine had been as fast at every visit as it was at the median one.

        Ratios of models are known better this way where the speed of the machine changes from visit to visit (a virtual machine's
        neighbours on the same core). What the machine does to latencies in general is left as it was. Control variates: log
        latency is regressed on the log of the sentinel beside it, one slope for all models.
        """
        if not self.beside_s or min(min(sentinels) for sentinels in self.beside_s.values()) <= 0:
            return self
        values = np.log([self.rounds_s[name] for name in self.rounds_s])
        beside = np.log([self.beside_s[name] for name in self.rounds_s])
        speeds = beside - np.median(beside, axis=1, keepdims=True)
        slower = values - np.median(values, axis=1, keepdims=True)
        slope = np.sum(speeds * slower) / (np.sum(speeds**2) + speeds.size * _SENTINEL_NOISE**2)
        steady = np.exp(values - np.clip(slope, 0.0, _STEEPEST) * (beside - np.median(beside)))
        rounds = {name: tuple(row) for name, row in zip(self.rounds_s, steady.tolist(), strict=True)}
        return replace(self, rounds_s=rounds, beside_s={})

    def continued(self, more: Measurement, names: Sequence[str]) -> Measurement:
        """The rounds of both for `names`; those of the second alone where the first was disturbed and the second was not."""
        if self.noisy and not more.noisy:
            return replace(more, rounds_s=_of(more.rounds_s, names), beside_s=_of(more.beside_s, names))
        both = self.beside_s and more.beside_s
        return Measurement(
            {name: (*self.rounds_s[name], *more.rounds_s[name]) for name in names},
            self.noisy or more.noisy,
            tuple(dict.fromkeys((*self.notes, *more.notes))),
            (*self.sentinel_s, *more.sentinel_s),
            {name: (*self.beside_s[name], *more.beside_s[name]) for name in names} if both else {},
            self.seed,
        )

    def disturbed(self, notes: Sequence[str]) -> Measurement:
        """The same, marked noisy by `notes` on what else went on, where there are any."""
        return replace(self, noisy=True, notes=tuple(dict.fromkeys((*notes, *self.notes)))) if notes else self

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "rounds_s": {name: list(values) for name, values in self.rounds_s.items()},
            "noisy": self.noisy,
            "notes": list(self.notes),
            "sentinel_s": list(self.sentinel_s),
            "beside_s": {name: list(values) for name, values in self.beside_s.items()},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Measurement:
        """Read what `to_json` wrote, before `beside_s` was noted too."""
        rounds, beside = (
            {name: tuple(values) for name, values in data.get(side, {}).items()} for side in ("rounds_s", "beside_s")
        )
        return cls(rounds, data["noisy"], tuple(data["notes"]), tuple(data["sentinel_s"]), beside)


@dataclass(frozen=True)
class Protocol:
    """How long and how carefully to measure.

    Attributes:
        rounds: every round visits each model once, in a new random order.
        min_time_s: a visit repeats the model for at least this long, at least once; the first run of a short model finds the caches full of
            the other models' tensors.
        warmup_s: before the rounds each model runs twice, and on until two runs agree within 5 % or this time is over.
        time_limit_s: past it no round is begun once `least_rounds` are there; `Measurement.notes` say how many there are then.
        retries: how many disturbed rounds are measured again, None for as many as `rounds`; beyond that the least disturbed
            ones are kept and the result is marked noisy.
        wait_s: how long to wait for idle cores first; where there are none by then, the result is marked noisy.
        least_rounds: by default as many as it takes for their range to be a 95 % interval.
        precision: after `rounds` there are more, at most _MOST_ROUNDS times as many, until the steadied models repeat to this fraction.
    """

    rounds: int = 12
    min_time_s: float = 0.04
    warmup_s: float = 0.3
    time_limit_s: float = 60.0
    retries: int | None = None
    wait_s: float = 0.0
    precision: float = math.inf
    least_rounds: int = 6


def interleave(
    runs: Mapping[str, Callable[[], object]],
    protocol: Protocol = Protocol(),
    *,
    seed: int = 0,
    lock_dir: Path | None = None,
    lock_timeout_s: float = LOCK_TIMEOUT_S,
    pin: bool = True,
    threads: int = 1,
    sentinel: Callable[[], float] | None = None,
    clock: Callable[[], float] = time.perf_counter,
    cpu_clock: Callable[[], float] | None = None,
) -> Measurement:
    """Measure what `runs` names, interleaved, between runs of the sentinel.

    Four models of 100 ms take about 6 s. `lock_dir` holds the lock that keeps other measurements away; None takes none, and waits for
    nothing. Where another one keeps it for `lock_timeout_s` the result is marked noisy. `threads` cores are waited for, where that is asked for.
    `cpu_clock` is the processor time of the calling thread, for models that run in this thread alone: a run that took longer than that
    was interrupted by other work and is repeated once; if that is interrupted too, its processor time stands in, and `notes` say how often.

    Raises:
        ValueError: nothing to measure.
    """
    if not runs:
        raise ValueError("nothing to measure")
    probe = sentinel or partial(fixed_work, clock=cpu_clock or clock)
    rounds = _Rounds(runs, protocol, seed, probe, clock, cpu_clock)
    if lock_dir is None:
        return rounds.measure(())
    with alone(lock_dir, pin=False, lock_timeout_s=lock_timeout_s) as company:
        busy = wait_until_quiet(protocol.wait_s, threads) if protocol.wait_s else ""
        with pinned() if pin else nullcontext("") as loose:  # on the core that idles now, of all that were looked at
            measured = rounds.measure((*company.notes, *filter(None, [busy, loose])))
        return replace(measured, noisy=True) if busy or company.noisy else measured


def fixed_work(size: int = 1 << 15, repeats: int = 3, clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of the sentinel: one thread, small enough for a cache, no BLAS; the median of `repeats`."""
    values = np.linspace(-1.0, 1.0, size, dtype=np.float32)
    out = np.empty_like(values)
    times = []
    for _ in range(repeats):
        begin = clock()
        for _ in range(16):
            np.exp(values, out=out)
        times.append(clock() - begin)
    return float(np.median(times))


class _Rounds:
    """One run of the protocol."""

    def __init__(
        self,
        runs: Mapping[str, Callable[[], object]],
        protocol: Protocol,
        seed: int,
        probe: Callable[[], float],
        clock: Callable[[], float],
        cpu_clock: Callable[[], float] | None,
    ) -> None:
        self.runs = runs
        self.protocol = protocol
        self.probe = probe
        self.clock = clock
        self.cpu_clock = cpu_clock
        self.timed = 0
        self.interrupted = 0
        self.seed = seed
        self.rng = np.random.default_rng(seed)
        self.sentinels: list[float] = []
        self.taken: list[tuple[dict[str, float], dict[str, float]]] = []

    def measure(self, notes: tuple[str, ...]) -> Measurement:
        begin = self.clock()
        estimates = {name: self._warm(run) for name, run in self.runs.items()}
        self.sentinels += [self.probe() for _ in range(3)]
        wanted = asked = self.protocol.rounds
        retries = asked if self.protocol.retries is None else self.protocol.retries
        while True:
            if len(self._quiet()) >= wanted or len(self.taken) >= wanted + retries:
                if wanted >= _MOST_ROUNDS * asked or not self._is_vague(wanted):
                    break
                wanted += math.ceil(asked / 2)
            late = self.clock() - begin > self.protocol.time_limit_s
            if late and len(self.taken) >= min(self.protocol.least_rounds, wanted):
                break
            self._round(estimates)
        share = self.interrupted / max(self.timed, 1)
        if share > TOLERATED_INTERRUPTIONS:
            notes += (f"other work interrupted {share:.0%} of the timings; their processor time stands in",)
        if len(self.taken) < asked:
            limit = f"the time limit of {self.protocol.time_limit_s:.3g} s was reached"
            notes += (f"only {len(self.taken)} of {asked} rounds: {limit}",)
        quiet = len(self._quiet())
        kept = max(asked, min(wanted, quiet)) if quiet >= _MOSTLY * wanted else wanted
        noisy = quiet < min(kept, len(self.taken)) or share > 0.5
        return replace(self._result(kept), noisy=noisy, notes=notes)

    def _is_vague(self, rounds: int) -> bool:
        return self._result(rounds).steadied.noise_floor > self.protocol.precision

    def _result(self, rounds: int) -> Measurement:
        """The least disturbed ones of the rounds so far."""
        kept = sorted(range(len(self.taken)), key=self._disturbance)[:rounds]
        chosen = [self.taken[index] for index in sorted(kept)]
        values, beside = (
            {name: tuple(of[name] for of in side) for name in self.runs} for side in zip(*chosen, strict=True)
        )
        return Measurement(values, sentinel_s=tuple(self.sentinels), beside_s=beside, seed=self.seed)

    def _warm(self, run: Callable[[], object]) -> float:
        """Seconds of one run once two in a row agree within 5 %, or the time is over."""
        begin = self.clock()
        last, current = self._time(run), self._time(run)
        while abs(current - last) > 0.05 * current and self.clock() - begin < self.protocol.warmup_s:
            last, current = current, self._time(run)
        return min(last, current)

    def _round(self, estimates: Mapping[str, float]) -> None:
        values: dict[str, float] = {}
        beside: dict[str, float] = {}
        names = list(self.runs)
        for index in self.rng.permutation(len(names)):
            name = names[index]
            repeats = max(1, math.ceil(self.protocol.min_time_s / max(estimates[name], 1e-9)))
            values[name] = float(np.median([self._time(self.runs[name]) for _ in range(min(repeats, 1000))]))
            self.sentinels.append(self.probe())
            beside[name] = math.sqrt(self.sentinels[-2] * self.sentinels[-1])
        self.taken.append((values, beside))

    def _time(self, run: Callable[[], object]) -> float:
        """Seconds of one run that was not interrupted, or its processor time."""
        if self.cpu_clock is None:
            return self._once(run)[0]
        self.timed += 1
        tries = [self._once(run)]
        if _was_interrupted(*tries[0]):
            tries.append(self._once(run))
        wall, cpu = tries[-1]
        if not _was_interrupted(wall, cpu):
            return wall
        self.interrupted += 1
        return min(cpu for _, cpu in tries)

    def _once(self, run: Callable[[], object]) -> tuple[float, float]:
        """Seconds by the wall clock and of the processor."""
        cpu_clock = self.cpu_clock or self.clock
        begin, cpu_begin = self.clock(), cpu_clock()
        run()
        cpu_end, end = cpu_clock(), self.clock()
        return end - begin, cpu_end - cpu_begin

    def _disturbance(self, index: int) -> float:
        return float(np.mean(list(self.taken[index][1].values())))

    def _quiet(self) -> list[int]:
        limit = (1 + SENTINEL_TOLERANCE) * min(self.sentinels)
        return [index for index in range(len(self.taken)) if self._disturbance(index) <= limit]


def _of(by_name: Mapping[str, tuple[float, ...]], names: Sequence[str]) -> dict[str, tuple[float, ...]]:
    return {name: by_name[name] for name in names} if by_name else {}


def _was_interrupted(wall_s: float, cpu_s: float) -> bool:
    return wall_s > 1.02 * cpu_s + 5e-5


def _split(values: NDArray[np.float64], half: int) -> float:
    first, second = np.median(values[:, :half], axis=1), np.median(values[:, half:], axis=1)
    return float(np.mean(np.abs(first - second) / np.median(values, axis=1)))
