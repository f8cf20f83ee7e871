"""The best measured models as MLflow models: ONNX flavour, signature and input example, registered under a name if asked."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from automc.pareto import knee
from automc.result import Finalist, Summary
from automc.rundir import RunDir
from automc.trial import Trial

__all__ = ["LOGGED", "chosen_models", "log_models"]

LOGGED = "automc.logged_models"
"""Tag of the parent run: which models it holds, so that a resumed search does not log them twice."""
_BIGGEST_EXAMPLE = 1_000_000
"""Numbers of an input example; a larger batch is left without one."""


def chosen_models(summary: Summary, folder: Path) -> dict[str, tuple[Finalist, Path]]:
    """{"best": .., "knee": ..}: the winner, and the measured model beyond which more cost buys little; those that have a file."""
    measured = [Trial(i, f.policy, f.cost, f.validation) for i, f in enumerate(summary.finalists)]
    found = {"best": summary.best, "knee": summary.finalists[knee(measured).number] if measured else None}
    run = RunDir(folder)
    paths = {alias: (f, run.model_path(f)) for alias, f in found.items() if f is not None}
    return {alias: pair for alias, pair in paths.items() if pair[1].is_file()}


def log_models(
    mlflow: Any, client: Any, run_id: str, uri: str, summary: Summary, folder: Path, name: str | None
) -> None:
    """Log the chosen models to the run, and register them as versions of `name` with their aliases where it is given."""
    chosen = chosen_models(summary, folder)
    mark = " ".join(f"{alias}:{f.policy.digest}-{f.stage}" for alias, (f, _) in chosen.items()) + f" {name or ''}"
    if client.get_run(run_id).data.tags.get(LOGGED) == mark:
        return
    mlflow.set_tracking_uri(uri)
    logged: dict[Path, Any] = {}
    with mlflow.start_run(run_id=run_id):
        for alias, (finalist, path) in chosen.items():
            if path not in logged:
                logged[path] = _log(mlflow, f"onnx-{alias}", path, finalist)
    versions: dict[Path, str] = {}
    for alias, (_, path) in chosen.items() if name else ():
        if path not in versions:
            versions[path] = mlflow.register_model(logged[path].model_uri, name).version
        client.set_registered_model_alias(name, alias, versions[path])
    client.set_tag(run_id, LOGGED, mark)


def _log(mlflow: Any, name: str, path: Path, finalist: Finalist) -> Any:
    model = onnx.load(path)
    requirements = [f"{package}=={version(package)}" for package in ("onnx", "onnxruntime", "numpy")]
    return mlflow.onnx.log_model(
        model, name=name, signature=_signature(mlflow, model), input_example=_example(model),
        pip_requirements=requirements, metadata={"digest": finalist.policy.digest, "stage": finalist.stage},
    )  # fmt: skip


def _signature(mlflow: Any, model: Any) -> Any:
    schema, spec = mlflow.types.schema.Schema, mlflow.types.schema.TensorSpec
    ends = (
        schema([spec(dtype, shape, name) for name, (dtype, shape) in _tensors(values).items()])
        for values in (model.graph.input, model.graph.output)
    )
    return mlflow.models.ModelSignature(*ends)


def _example(model: Any) -> Mapping[str, Any] | None:
    """Zeros of the model's input shapes, by name; dimensions that are free are 1."""
    shapes = {
        name: (dtype, tuple(max(1, size) for size in shape))
        for name, (dtype, shape) in _tensors(model.graph.input).items()
    }
    if sum(int(np.prod(shape)) for _, shape in shapes.values()) > _BIGGEST_EXAMPLE:
        return None
    return {name: np.zeros(shape, dtype) for name, (dtype, shape) in shapes.items()}


def _tensors(values: Any) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
    """Name -> (type, shape), -1 where a dimension is free."""
    return {
        value.name: (
            np.dtype(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)),
            tuple(d.dim_value if d.HasField("dim_value") else -1 for d in value.type.tensor_type.shape.dim),
        )
        for value in values
    }
