"""automc: find, layer by layer, how much to prune, how many bits to keep and which rank to factorise to, so that a trained
PyTorch model keeps its accuracy and measurably fits a budget of milliseconds, bytes or MACs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from automc.budget import Budget
from automc.errors import AutomcError
from automc.policy import LowRank, Policy, Prune, Quantize
from automc.trial import Cost, Trial

if TYPE_CHECKING:
    from automc.finetuning import Tuned, finetune
    from automc.job import Compressed, Job, compress, search

__version__ = "0.1.0"
__all__ = [
    "AutomcError",
    "Budget",
    "Compressed",
    "Cost",
    "Job",
    "LowRank",
    "Policy",
    "Prune",
    "Quantize",
    "Trial",
    "Tuned",
    "compress",
    "finetune",
    "search",
]
_LAZY = {
    "Compressed": "automc.job",
    "Job": "automc.job",
    "Tuned": "automc.finetuning",
    "compress": "automc.job",
    "finetune": "automc.finetuning",
    "search": "automc.job",
}


def __getattr__(name: str) -> Any:
    """Import what needs torch only when it is used: `import automc` stays light."""
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
