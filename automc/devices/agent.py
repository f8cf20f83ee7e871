"""What runs on a target: measure what a kit holds, or serve one over a pipe. Needs Python, numpy and onnxruntime alone.

The server greets with a line, since the shell that starts it may print something before. Frames are 8 bytes of length, a JSON header with the
lengths of its blobs, and the blobs (models are deflated, arrays are .npy).
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import os
import platform
import shlex
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any

import numpy as np

from automc.devices.cpu import Cpu
from automc.devices.device import Array, digest
from automc.devices.exclusive import overheard
from automc.devices.lines import append_lines, read_lines
from automc.devices.measure import COMPARING
from automc.devices.places import assign
from automc.devices.probes import Probe, run_probes
from automc.errors import AutomcError, DiskError, InputError, first_line

__all__ = ["main", "measure_kit", "receive", "send", "serve", "until_greeted"]

_ROUNDS = 8
_REPEATS = 8
_GREETING = b"automc: frames follow\n"
_MOST_BEFORE = 1 << 16
"""Bytes that may come before the greeting."""
_MOST_HEADER = 1 << 28
"""Bytes of a header: the times of hundreds of models take some megabytes."""


def main(arguments: Sequence[str], archive: Path) -> int:
    """`python kit.zip [--threads N] [--time S] [--out FILE]`, or `python agent.zip serve`; the exit code."""
    parser = argparse.ArgumentParser(
        prog=f"python {shlex.quote(archive.name)}", description="Measure this machine for automc."
    )
    parser.add_argument("command", nargs="?", default="measure", choices=["measure", "serve"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--time", type=float, default=200.0, metavar="SECONDS", help="for the whole models")
    parser.add_argument("--out", type=Path, default=Path(f"device-{platform.node() or 'here'}.jsonl"))
    given = parser.parse_args(arguments)
    try:
        return _run(given, archive)
    except AutomcError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        sys.stderr.write(f"Cannot use{where}: {error.strerror or error}. Give another --out, or free some space.\n")
        return DiskError.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("Broken off. Run this again: it goes on.\n")
        return 130


def _run(given: argparse.Namespace, archive: Path) -> int:
    with zipfile.ZipFile(archive) as kit:
        device = Cpu(given.threads, conv=lambda cin, cout: kit.read(f"convs/{cin}x{cout}.onnx"))
        if given.command == "serve":
            serve(device, sys.stdin.buffer, _own_stdout())
            return 0
        if not _is_of(device, given.out):
            raise InputError(f"{given.out} is of another machine, runtime or number of threads: give another --out.")
        measure_kit(device, kit, given.out, time_limit_s=given.time, say=_say)
    return 0


def _is_of(device: Cpu, path: Path) -> bool:
    """Whether a device file holds nothing of another device."""
    return all(
        line.get("device_key", device.key) == device.key
        for line in read_lines(path)
        if line and line["kind"] == "device"
    )


def measure_kit(
    device: Cpu, kit: zipfile.ZipFile, out: Path, *, time_limit_s: float, say: Callable[[str], None]
) -> None:
    """Append to `out` what the kit asks and what `out` does not hold yet.

    Raises:
        InputError: none of the candidates runs here.
        OSError: `out` cannot be written.
    """
    manifest = json.loads(kit.read("kit.json"))
    subject = manifest["subject"]
    key = digest(device.key, subject)
    known = [line for line in read_lines(out) if line is not None]
    environment = {**device.environment(), "host": platform.node(), "kit_version": manifest["version"]}
    say(f"{environment['processor']}, onnxruntime {environment['runtime_version']}, {device.threads} thread(s)")
    if not any(line["kind"] == "space" for line in known):
        append_lines(out, [("space", {"capabilities": manifest["capabilities"]})])
    _probe(device, kit, manifest["probes"], known, out, say)
    facts = {"device_key": device.key, "capabilities": dataclasses.asdict(device.capabilities())}
    append_lines(out, [("device", {**facts, "environment": {**environment, "measured_at": _now()}})])
    begin = time.monotonic()
    done = {_policy_key(line) for line in known if line["kind"] == "candidate" and line["key"] == key}
    with overheard() as heard:
        models = _time_kernels(device, kit, manifest, key, done, out, say)
    say(f"measure {len(models)} models whole, interleaved")
    inputs = _arrays(manifest["inputs"])
    measured = device.measure(models, inputs, _ROUNDS, **COMPARING, time_limit_s=time_limit_s).disturbed(heard)
    head = {
        **facts, "key": key, "subject": subject, "environment": {**environment, "measured_at": _now()}, "batch_size": manifest["batch_size"],
        "measurement": measured.to_json(), "seconds": time.monotonic() - begin, "candidates": len(models),
        "label": manifest["label"], "failed": [],
    }  # fmt: skip
    append_lines(out, [("profile", head)])
    noisy = " The machine was busy: the timings are marked noisy." if measured.noisy else ""
    say(f"Done, noise floor {100 * measured.steadied.noise_floor:.1f} %.{noisy}")
    say(f"Bring {out} back and give it to `automc profile --from-kit {shlex.quote(out.name)}`.")


def _probe(
    device: Cpu,
    kit: zipfile.ZipFile,
    probes: Sequence[Any],
    known: Sequence[Any],
    out: Path,
    say: Callable[[str], None],
) -> None:
    answered = {(line["group"], line["name"]) for line in known if line["kind"] == "probe"}
    missing = [probe for probe in probes if (probe["group"], probe["name"]) not in answered]
    for index, entry in enumerate(missing):
        fields = {**entry, "model": kit.read(entry["model"]), "ops": tuple(entry["ops"])}
        [found] = run_probes(device, [Probe(**fields)])
        append_lines(out, [("probe", found.to_json())])
        if index % 10 == 9 or index + 1 == len(missing):
            say(f"probes: {index + 1} of {len(missing)}")


def _time_kernels(
    device: Cpu, kit: zipfile.ZipFile, manifest: Mapping[str, Any], key: str, done: set[str], out: Path, say: Callable[[str], None]
) -> dict[str, bytes]:  # fmt: skip
    """Policy digest -> model of the candidates that run here; their kernels are timed and kept.

    Raises:
        InputError: there are none.
    """
    models: dict[str, bytes] = {}
    first = ""
    inputs, candidates = _arrays(manifest["inputs"]), manifest["candidates"]
    for index, entry in enumerate(candidates):
        model = kit.read(entry["model"])
        try:
            if _policy_key(entry) not in done:
                nodes = device.node_times(model, inputs, _REPEATS)
                places = assign({name: (layer, factor) for name, (layer, factor) in entry["places"].items()}, nodes)
                record = {
                    "key": key, "subject": manifest["subject"], "policy": entry["policy"], "size_bytes": entry["size_bytes"],
                    "nodes": [node.to_json() for node in nodes], "places": [list(p) if p else None for p in places],
                }  # fmt: skip
                append_lines(out, [("candidate", record)])
            models[entry["digest"]] = model
        except Exception as error:  # whatever the runtime raises on one model: the others are measured
            reason = str(error) or type(error).__name__
            record = {"key": key, "subject": manifest["subject"], "policy": entry["policy"], "reason": reason}
            append_lines(out, [("failure", record)])
            first = first or first_line(error)
            say(f"candidate {index + 1} does not run here: {first_line(error)}")
        say(f"candidates: {index + 1} of {len(candidates)}")
    if not models:
        raise InputError(
            f"None of {len(candidates)} candidates runs here: {first}",
            remedy="A newer onnxruntime may run them (pip install --upgrade onnxruntime); give it another --out.",
        )
    return models


def serve(device: Cpu, source: IO[bytes], sink: IO[bytes]) -> None:
    """Greet, and answer requests until the pipe is closed."""
    sink.write(_GREETING)
    sink.flush()
    while (request := receive(source)) is not None:
        header, blobs = request
        try:
            send(sink, _answer(device, header, blobs))
        except Exception as error:  # told to the other side, which raises it there
            send(sink, {"error": f"{type(error).__name__}: {error}"})


def _answer(device: Cpu, header: Mapping[str, Any], blobs: Sequence[bytes]) -> dict[str, Any]:
    asked = header["ask"]
    if asked == "who":
        return {"key": device.key, "environment": {**device.environment(), "host": platform.node()}}
    if asked == "capabilities":
        return dataclasses.asdict(device.capabilities())
    count = len(header["models"])
    models = {name: zlib.decompress(blob) for name, blob in zip(header["models"], blobs, strict=False)}
    inputs = [np.load(io.BytesIO(blob), allow_pickle=False) for blob in blobs[count:]]
    if asked == "nodes":
        [model] = models.values()
        with overheard() as heard:
            nodes = device.node_times(model, inputs, header["repeats"])
        return {"nodes": [node.to_json() for node in nodes], "heard": heard}
    return device.measure(models, inputs, header["rounds"], **header["options"]).to_json()


def send(sink: IO[bytes], header: Mapping[str, Any], blobs: Sequence[bytes] = ()) -> None:
    """Write one frame."""
    text = json.dumps({**header, "blobs": [len(blob) for blob in blobs]}).encode()
    sink.write(len(text).to_bytes(8, "little") + text)
    for blob in blobs:
        sink.write(blob)
    sink.flush()


def receive(source: IO[bytes]) -> tuple[dict[str, Any], list[bytes]] | None:
    """Read one frame; None where the pipe was closed, also in the middle of one.

    Raises:
        ValueError: what comes is no frame.
    """
    size = source.read(8)
    length = int.from_bytes(size, "little")
    if len(size) == 8 and length > _MOST_HEADER:
        raise ValueError(f"{size!r} does not begin a frame")
    text = source.read(length) if len(size) == 8 else b""
    if len(size) < 8 or len(text) < length:
        return None
    header = json.loads(text)
    if not isinstance(header, dict) or not isinstance(header.get("blobs"), list):
        raise ValueError(f"{text[:40]!r} does not begin a frame")
    lengths = header.pop("blobs")
    blobs = [source.read(length) for length in lengths]
    return (header, blobs) if [len(blob) for blob in blobs] == lengths else None


def until_greeted(source: IO[bytes]) -> bytes | None:
    """Read up to the greeting of a server: None, or everything that came where it did not."""
    heard = bytearray()
    while not heard.endswith(_GREETING):
        byte = source.read(1)
        heard += byte
        if not byte or len(heard) > _MOST_BEFORE:
            return bytes(heard)
    return None


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _own_stdout() -> IO[bytes]:
    """The pipe to the other side; whatever else prints goes to stderr."""
    mine = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return mine


def _arrays(inputs: Sequence[tuple[str, Sequence[int]]]) -> list[Array]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal(tuple(shape)).astype(dtype) for dtype, shape in inputs]


def _policy_key(line: Mapping[str, Any]) -> str:
    return json.dumps(line["policy"], sort_keys=True)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
