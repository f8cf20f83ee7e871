"""A run's job, made again from its config.yaml."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import tiny_run

from automc.errors import InputError
from automc.reopening import job_of
from automc.rundir import RunDir


def test_the_job_of_a_run_is_the_one_that_it_was_made_by(tmp_path: Path) -> None:
    job = tiny_run.job(tmp_path, timeout="5m", tracking_uri="sqlite:///mine.db")
    facts = dataclasses.asdict(job)
    facts["tracking"] = facts.pop("tracking_uri")
    run = RunDir.create(tmp_path / "runs" / "tiny", {**facts, "model_digest": "m", "data_digest": "d"})
    run.close()
    assert job_of(run) == job


@pytest.mark.parametrize("config", [{"seed": 0}, {"budget": 5}])
def test_what_is_not_of_a_search_is_refused(tmp_path: Path, config: dict[str, object]) -> None:
    run = RunDir.create(tmp_path / "other", config)
    run.close()
    with pytest.raises(InputError, match="is not that of a search"):
        job_of(run)
