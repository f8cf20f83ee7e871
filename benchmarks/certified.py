"""Whether certified winners hold their budget when somebody else measures them: searches with different budgets, each winner by stranger.py.

    python benchmarks/certified.py FOLDER [--searches 20] [--resnet20 MODELS.py WEIGHTS CIFAR_FOLDER]

FOLDER keeps the runs, a cache that they share, and a line per search in certified.jsonl: what is there is not run again. Budgets lie between
0.9 and 0.35 of what the dense model took in the first search of its network, in milliseconds. A winner holds its budget where the stranger's
median is inside; the stranger knows nothing of automc, and measures once, right after the search. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from automc.errors import BudgetUnreachableError

AUTOMC = Path(sys.executable).with_name("automc")
STRANGER = Path(__file__).with_name("stranger.py")
_FIRST, _LAST = 0.9, 0.35
_SEARCH = ("--trials", "12", "--recover", "0", "--profile", "20s", "--tracking-uri", "")


def main() -> None:
    """Print a line per search, then how many held."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--searches", type=int, default=20)
    parser.add_argument("--resnet20", nargs=3, metavar=("MODELS.py", "WEIGHTS", "CIFAR_FOLDER"))
    given = parser.parse_args()
    found = list(_answers(given.folder, given.searches, given.resnet20))
    certified = [answer for answer in found if answer["stranger_ms"] is not None]
    held = [answer for answer in certified if answer["stranger_ms"] <= answer["budget_ms"]]
    print(
        f"{len(held)} of {len(certified)} certified winners held their budget as the stranger measured them; {len(found) - len(certified)} searches of {len(found)} certified none"
    )


def _answers(folder: Path, count: int, resnet20: Sequence[str] | None) -> Iterator[dict[str, Any]]:
    networks = {"demo": (), **({"resnet20": _options(*resnet20)} if resnet20 else {})}
    path = folder / "certified.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    known = {line["name"]: line for line in map(json.loads, path.read_text().splitlines())} if path.is_file() else {}
    dense_ms: dict[str, float] = {}
    for index in range(count):
        network, step = list(networks)[index % len(networks)], index // len(networks)
        steps = -(-count // len(networks))
        name = f"{network}-{index:03d}-of-{count:03d}"
        if name not in known:
            share = _FIRST - (_FIRST - _LAST) * step / max(steps - 1, 1)
            budget = f"{share * dense_ms[network]:.3f}ms" if network in dense_ms else f"{100 * share:.0f}%"
            known[name] = _searched(folder, name, budget, networks[network])
            with path.open("a") as file:
                file.write(json.dumps(known[name]) + "\n")
        dense_ms.setdefault(network, known[name]["dense_ms"])
        _tell(known[name])
        yield known[name]


def _options(models: str, weights: str, cifar: str) -> tuple[str, ...]:
    return ("--model", f"{models}:resnet20", "--weights", weights, "--data", f"cifar10:{cifar}")


def _searched(folder: Path, name: str, budget: str, options: Sequence[str]) -> dict[str, Any]:
    command = [
        sys.executable,
        "-m",
        "automc",
        "search",
        "--name",
        name,
        "--budget",
        budget,
        "--runs",
        str(folder / "runs"),
    ]
    environment = {**os.environ, "AUTOMC_CACHE": str(folder / "cache")}
    done = subprocess.run([*command, *_SEARCH, *options, "--json", "--quiet"], env=environment, capture_output=True, text=True, check=False)  # fmt: skip
    if done.returncode not in (0, BudgetUnreachableError.exit_code):
        raise SystemExit(f"{name} failed with exit code {done.returncode}:\n{done.stderr[-2000:]}")
    told = json.loads(done.stdout)
    best = folder / "runs" / name / "best" / "model.onnx"
    return {
        "name": name,
        "budget_ms": 1e3 * told["limits"]["latency_s"],
        "dense_ms": 1e3 * told["dense"]["cost"]["latency_s"],
        "certified_ms": 1e3 * told["best"]["cost"]["latency_s"] if told["best"] else None,
        "stranger_ms": _stranger_ms(best) if told["best"] else None,
        "score": told["best"]["validation"] if told["best"] else None,
    }


def _stranger_ms(model: Path) -> float:
    done = subprocess.run([sys.executable, str(STRANGER), str(model)], capture_output=True, text=True, check=True)
    found = re.search(r"median ([0-9.]+) ms", done.stdout)
    assert found is not None, done.stdout
    return float(found[1])


def _tell(answer: dict[str, Any]) -> None:
    if answer["stranger_ms"] is None:
        print(f"{answer['name']:>22}: {answer['budget_ms']:8.2f} ms not reachable, nothing certified", flush=True)
        return
    holds = "holds" if answer["stranger_ms"] <= answer["budget_ms"] else "MISSES"
    print(
        f"{answer['name']:>22}: budget {answer['budget_ms']:8.2f} ms, certified {answer['certified_ms']:8.2f} ms, stranger {answer['stranger_ms']:8.2f} ms, {holds}; "
        f"score {answer['score']:.4f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
