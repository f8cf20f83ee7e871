"""A recipe: the options of a search in a YAML file, read strictly, with every fault reported at once."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import yaml

from automc.errors import InputError

__all__ = ["read_recipe"]

_RECORD = {"created", "data_digest", "device_key", "model_digest", "versions"}
"""What a run's config.yaml holds besides its settings: facts of that run, which a repetition finds out anew."""
_LATER = {"made_in", "watts"}
"""The same, of runs that have them."""


def read_recipe(path: Path, options: Mapping[str, click.Option]) -> dict[str, Any]:
    """Field -> value of what the recipe sets. Keys are option names, `batch-size` or `batch_size`.

    The config.yaml of a run is a recipe too: it goes on with that run, or repeats it under another --name.

    Raises:
        InputError: the file cannot be read, is not a mapping, or has unknown keys or unusable values; names all of them.
    """
    values: dict[str, Any] = {}
    faults: list[str] = []
    written = _mapping(path)
    if written.keys() >= _RECORD:
        values["made_in"] = written.get("made_in")
        written = _settings_of_run(written, path)
    for key, raw in written.items():
        option = options.get(str(key).replace("-", "_"))
        if option is None or option.name is None:
            faults.append(_unknown(str(key), options))
            continue
        try:
            values[option.name] = _convert(option, raw)
        except click.BadParameter as error:
            faults.append(f"{key}: {error.message.rstrip('.')}")
    if faults:
        raise InputError(
            f"The recipe {path} cannot be used: {'; '.join(faults)}.",
            remedy="`automc search --help` lists the options.",
        )
    return values


def _mapping(path: Path) -> Mapping[Any, Any]:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not a text file"
        raise InputError(
            f"The recipe {path} cannot be read: {reason}.", remedy="Give the path of a YAML file."
        ) from error
    except yaml.YAMLError as error:
        problem = " ".join(str(error).split())
        raise InputError(
            f"The recipe {path} is not YAML: {problem}.", remedy="Write lines such as `budget: 50ms`."
        ) from error
    if not isinstance(data, Mapping):
        raise InputError(f"The recipe {path} holds no options.", remedy="Write lines such as `budget: 50ms`.")
    return data


def _settings_of_run(config: Mapping[Any, Any], path: Path) -> Mapping[Any, Any]:
    settings = {key: value for key, value in config.items() if key not in _RECORD | _LATER}
    settings["tracking_uri"] = settings.pop("tracking", None)
    run, meant = path.resolve().parent, Path(str(settings.get("runs")), str(settings.get("name")))
    if run.name == meant.name and run != meant.resolve():  # it lies elsewhere, as seen from here
        settings["runs"] = str(run.parent)
    return settings


def _unknown(key: str, options: Mapping[str, click.Option]) -> str:
    names = [name.replace("_", "-") for name in options]
    close = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
    return f"there is no option {key!r}" + (f" (did you mean {close[0]!r}?)" if close else "")


def _convert(option: click.Option, raw: Any) -> Any:
    if option.multiple:
        values = raw if isinstance(raw, list) else [raw]
        return tuple(_convert_one(option, value) for value in values)
    return None if raw is None else _convert_one(option, raw)


def _convert_one(option: click.Option, raw: Any) -> Any:
    if option.is_flag and isinstance(raw, bool):
        return raw
    if isinstance(raw, (Mapping, list, bool)) or raw is None:
        raise click.BadParameter(f"{raw!r} is not a single value")
    whole = isinstance(option.type, (click.types.IntParamType, click.IntRange))
    if whole and isinstance(raw, float):
        raise click.BadParameter(f"{raw!r} is not a whole number")
    return option.type.convert(raw if whole else str(raw), option, None)
