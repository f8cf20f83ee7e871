"""What was learned of a device, in sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from automc.devices.energy import Energy
from automc.devices.probes import Probed
from automc.predict.device_file import DeviceFile, Head

__all__ = ["learned", "summary"]

_BLOCKS = 8
_LAYERS = ("3x3", "1x1", "depthwise 3x3", "linear")


def learned(device: DeviceFile) -> list[str]:
    """Sentences, one a line: who it is, how fast it is at what, which models were profiled, and how much the timings are worth."""
    probes = _Probes(device.probes)
    return [
        *_identity(device),
        *filter(
            None, (_products(probes), _blocks(device, probes), _integers(probes), _four_bits(probes), _rest(probes))
        ),
        *_refused(device.probes),
        *(_model(head) for head in device.heads),
        *(_joules(label, energy) for label, energy in device.energies),
        *device.few,
        *device.damaged,
    ]


def summary(device: DeviceFile) -> str:
    """The shortest that says what matters."""
    probes = _Probes(device.probes)
    parts = [_speed(probes), f"block {device.capabilities.channel_block}", _int8(probes), _noise(device.heads)]
    return ", ".join(part for part in parts if part)


class _Probes:
    def __init__(self, answers: Sequence[Probed]) -> None:
        self._answers = {(found.group, found.name): found for found in answers}

    def rate(self, group: str, name: str) -> float | None:
        """Work per second, None where that is not known."""
        found = self._answers.get((group, name))
        return found.rate if found else None

    def seconds(self, group: str, name: str) -> float | None:
        found = self._answers.get((group, name))
        return found.seconds if found else None

    def ratio(self, group: str, name: str, base: str) -> float | None:
        """How many times as fast as `base`, per unit of work."""
        one, other = self.rate(group, name), self.rate(group, base)
        return one / other if one and other else None

    def sweep(self, side: str) -> dict[int, float]:
        """Channels -> work per second."""
        names = [name for group, name in self._answers if group == "sweep" and name.startswith(f"{side} ")]
        rates = {int(name.split()[1]): self.rate("sweep", name) for name in names}
        return {width: rate for width, rate in sorted(rates.items()) if rate}


def _identity(device: DeviceFile) -> Iterator[str]:
    facts = device.environment
    runtime = " ".join(filter(None, (facts.get("runtime", ""), facts.get("runtime_version", ""))))
    threads = facts.get("threads", "")
    yield f"{device.name}: {facts.get('processor', facts.get('device', 'unknown'))}, {runtime}, {threads} thread(s)"
    if device.off_board:
        yield "Measured off board, with a kit; searches price by it, and cannot certify on it."


def _speed(probes: _Probes) -> str:
    rate = probes.rate("layer", "3x3, fp32")
    return f"{rate / 1e9:.0f} GFLOP/s on aligned 3x3" if rate else ""


def _int8(probes: _Probes) -> str:
    ratio = probes.ratio("layer", "3x3, int8", "3x3, fp32")
    return f"int8 {ratio:.1f}x on 3x3" if ratio else ""


def _noise(heads: Sequence[Head]) -> str:
    return f"noise floor {100 * min(head.measurement.steadied.noise_floor for head in heads):.1f} %" if heads else ""


def _products(probes: _Probes) -> str:
    rates = [(name, probes.rate("gemm", name)) for name in ("fp32", "fp16", "int8")]
    told = [f"{rate / 1e9:.0f} G/s in {name}" for name, rate in rates if rate]
    return f"Matrix products, operations per second: {', '.join(told)}." if told else ""


def _blocks(device: DeviceFile, probes: _Probes) -> str:
    block, multiple = device.capabilities.channel_block, device.capabilities.channel_multiple
    speed = _speed(probes)
    told = f"{speed}; channels in blocks of {block}, input channels in multiples of {multiple}" if speed else ""
    for side in ("in", "out"):
        rates = probes.sweep(side)
        aligned = [rate for width, rate in rates.items() if width % _BLOCKS == 0]
        if told and aligned:
            worst = min(rates, key=lambda width: rates[width])
            told += (
                f"; {worst} {side}put channels take {max(aligned) / rates[worst]:.1f}x the time that their work would"
            )
    return f"{told}." if told else ""


def _integers(probes: _Probes) -> str:
    told = []
    for name in _LAYERS:
        chained, alone = probes.ratio("layer", f"{name}, int8", f"{name}, fp32"), probes.ratio("layer", f"{name}, int8 alone", f"{name}, fp32")  # fmt: skip
        if chained:
            told.append(f"{chained:.1f}x on {name}" + (f" ({alone:.1f}x alone between conversions)" if alone else ""))
    return f"int8 against fp32: {', '.join(told)}." if told else ""


def _four_bits(probes: _Probes) -> str:
    told = [
        f"{ratio:.1f}x at {tokens} token{'s' if tokens > 1 else ''}"
        for tokens in (1, 128)
        if (ratio := probes.ratio("four bits", f"{tokens} tokens, int4", f"{tokens} tokens, fp32"))
    ]
    return f"Linear layers with 4-bit weights against fp32: {', '.join(told)}." if told else ""


def _rest(probes: _Probes) -> str:
    short, long = probes.seconds("dispatch", "8"), probes.seconds("dispatch", "72")
    told = [f"{1e6 * max(long - short, 0.0) / 64:.2f} µs per operator"] if short and long else []
    streams = (("256 kB", "in cache"), ("32 MB", "beyond it"))
    told += [f"{rate / 1e9:.0f} GB/s {where}" for name, where in streams if (rate := probes.rate("stream", name))]
    conversions = (("QuantizeLinear", "quantise"), ("DequantizeLinear", "dequantise"))
    told += [
        f"{1e9 / rate:.2f} ns per element to {word}" for op, word in conversions if (rate := probes.rate("convert", op))
    ]
    return f"Besides: {', '.join(told)}." if told else ""


def _refused(answers: Sequence[Probed]) -> list[str]:
    return [f"Not run here: {found.group} {found.name} ({found.error})." for found in answers if found.seconds is None]


def _model(head: Head) -> str:
    measurement = head.measurement
    told = (
        f"{head.label or head.key}, batch size {head.batch_size}: {head.candidates} candidates in {head.seconds:.0f} s"
    )
    told += f", noise floor {100 * measurement.steadied.noise_floor:.1f} %" + (", noisy" if measurement.noisy else "")
    if head.failed:
        told += f", {head.failed} could not be run"
    return told + (f" ({'; '.join(measurement.notes)})" if measurement.notes else "")


def _joules(label: str, energy: Energy) -> str:
    return (
        f"{label}: {1e3 * energy.joules:.2f} mJ a batch above idle as measured by {energy.meter}"
        f" ({energy.idle_w:.1f} W idle, {energy.busy_w:.1f} W busy, {energy.runs} runs in {energy.window_s:.1f} s)."
    )
