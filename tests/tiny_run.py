"""A real search of a few seconds whose config.yaml alone is enough to load its model and data again."""

from __future__ import annotations

from pathlib import Path

from automc.job import Job, run
from automc.rundir import RunDir

_MINE = '''
import torch
from networks import images, make
from torch.utils.data import DataLoader, TensorDataset


def build():
    """A small residual network, trained for a few steps on five patterns under noise."""
    torch.manual_seed(0)
    model = make("residual").train()
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    x, y = samples(512, 1)
    for step in range(40):
        rows = torch.arange(64) + 64 * (step % 8)
        loss = torch.nn.functional.cross_entropy(model(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def samples(count, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 5, (count,), generator=generator)
    return images(5, seed=99)[labels] + 0.7 * images(count, seed=seed), labels


def loaders():
    """train, calibration, validation, test"""
    sizes = {10: 256, 11: 128, 12: 128, 13: 128}
    return tuple(DataLoader(TensorDataset(*samples(count, seed)), batch_size=64) for seed, count in sizes.items())
'''


def job(folder: Path, **changes: object) -> Job:
    """The job of the search; `folder` holds the model's file and the runs."""
    mine = folder / "mine.py"
    mine.write_text(_MINE)
    fields: dict[str, object] = {
        "budget": ("75%",), "model": f"{mine}:build", "data": f"{mine}:loaders", "batch_size": 64, "trials": 6,
        "recover": "0", "profile": "3s", "name": "tiny", "runs": str(folder / "runs"), "tracking_uri": "", "objective": ("size",),
    }  # fmt: skip
    return Job(**{**fields, **changes})  # type: ignore[arg-type]


def searched(folder: Path) -> RunDir:
    """Run it."""
    run(job(folder))
    return RunDir(folder / "runs" / "tiny")
