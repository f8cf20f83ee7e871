"""tensorly, which the CP and tensor-train methods need and nothing else does."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from automc.errors import MissingError

__all__ = ["tensorly_decompositions"]


def tensorly_decompositions() -> ModuleType:
    """The module `tensorly.decomposition`, imported when first needed.

    Raises:
        MissingError: tensorly is not installed.
    """
    try:
        return import_module("tensorly.decomposition")
    except ImportError as error:
        raise MissingError(
            "CP and tensor-train factors need tensorly.", remedy="Install it: pip install automc[tensor]"
        ) from error
