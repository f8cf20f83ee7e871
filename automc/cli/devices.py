"""`automc devices`: which devices are known, and what was learned of one."""

from __future__ import annotations

from typing import Any

import click
from rich import box
from rich.table import Table

from automc.cli.report import print_json, stdout
from automc.cli.screen import Quiet

__all__ = ["devices"]

_EPILOG = """\b
Examples:
  automc devices
  automc devices show cpu
"""


@click.group(epilog=_EPILOG, invoke_without_command=True, short_help="List the known devices, or say what was learned.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object to stdout instead of the table.")
@click.pass_context
def devices(context: click.Context, as_json: bool) -> None:
    """List the devices that something was measured of, the latest first, and what else --device takes."""
    if context.invoked_subcommand:
        return
    from automc.predict.device_file import known_devices
    from automc.predict.words import summary
    from automc.registry import names

    found = known_devices(observer=Quiet())
    if as_json:
        print_json({"measured": [_record(device) for device in found], "built_in": names("device")})
        return
    console = stdout()
    if found:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for heading in ("device", "processor", "runtime", "threads", "models", "what was learned"):
            table.add_column(heading)
        for device in found:
            facts = device.environment
            runtime = f"{facts.get('runtime', '')} {facts.get('runtime_version', '')}"
            labels = ", ".join(head.label or head.key[:8] for head in device.heads)
            table.add_row(
                device.name, facts.get("processor", ""), runtime, facts.get("threads", ""), labels, summary(device)
            )
        console.print(table)
    else:
        console.print("Nothing was measured yet. `automc profile` measures this machine.")
    console.print(f"--device takes: {', '.join(names('device'))}, ssh:USER@HOST, or a measured device by its name.")


@devices.command(short_help="Say in words what was learned of a device.")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object to stdout instead of sentences.")
def show(name: str, as_json: bool) -> None:
    """Say in words what was learned of the device NAME: its key, its name, or the beginning of either."""
    from automc.predict.device_file import find_device_file
    from automc.predict.words import learned

    device = find_device_file(name)
    if as_json:
        print_json({**_record(device), "learned": learned(device)})
        return
    for line in learned(device):
        stdout().print(line, soft_wrap=True)
    stdout().print(f"The raw rounds: {device.path}", soft_wrap=True)


def _record(device: Any) -> dict[str, Any]:
    return {
        "name": device.name,
        "key": device.key,
        "path": str(device.path),
        "environment": dict(device.environment),
        "probes": [found.to_json() for found in device.probes],
        "models": [
            {
                "label": head.label,
                "candidates": head.candidates,
                "failed": head.failed,
                "batch_size": head.batch_size,
                "noise_floor": head.measurement.steadied.noise_floor,
                "noisy": head.measurement.noisy,
                "notes": list(head.measurement.notes),
                "measured_at": head.measured_at,
            }
            for head in device.heads
        ],
    }
