"""Warm starts: what other tools and earlier runs chose is read, moved into the space and into the budget, and asked first."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from automc.agents.uniform import Uniform
from automc.errors import InputError, UnknownNameError
from automc.foreign import from_bits, from_channels, from_nni, from_torch_pruning, read_foreign
from automc.graph import ChannelGroup, Channels, LayerGraph, LayerSpec, Member
from automc.policy import LowRank, Policy, Prune, Quantize, Sparsify
from automc.rundir import RunDir
from automc.space import Domain, SearchSpace
from automc.testing import drive, small_toy
from automc.trial import Cost, Trial
from automc.warm import WarmStart, find_start, nearest, read_start


def layer(name: str, inputs: int, outputs: int, *, quantize: bool = True) -> LayerSpec:
    return LayerSpec(
        name, "conv", Channels(inputs), Channels(outputs), inputs, outputs, (3, 3), (1, 1), 1,
        (inputs, 8, 8), (outputs, 8, 8), True, quantize=quantize,
    )  # fmt: skip


def member(module: str, side: str, width: int) -> Member:
    return Member(module, side, tuple((i,) for i in range(width)))  # type: ignore[arg-type]


GRAPH = LayerGraph(
    layers=(layer("a", 3, 16), layer("b", 16, 32), layer("c", 32, 10, quantize=False)),
    groups=(
        ChannelGroup("a", 16, (member("a", "out", 16), member("b", "in", 16))),
        ChannelGroup("b", 32, (member("b", "out", 32), member("c", "in", 32))),
    ),
)
SPACE = SearchSpace(
    (
        Domain("a", "prune", (None, Prune(12), Prune(8), Prune(4))),
        Domain("b", "prune", (None, Prune(24), Prune(16), Prune(8))),
        Domain("a", "quantize", (None, Quantize(8, 8), Quantize(8, 32), Quantize(4, 32))),
        Domain("b", "low_rank", (None, LowRank(16), LowRank(8), LowRank(8, "tucker"))),
        Domain("b", "sparsify", (None, Sparsify(0.5), Sparsify(0.25))),
    )
)


def test_torch_pruning_takes_shares_of_output_channels_away() -> None:
    assert from_torch_pruning({"a": 0.25, "b": 0.5, "elsewhere": 0.5}, GRAPH) == Policy.of(
        [("a", Prune(12)), ("b", Prune(16))]
    )


def test_torch_pruning_names_blocks_for_all_layers_in_them() -> None:
    graph = LayerGraph(
        layers=(layer("stem", 3, 8), layer("block.a", 8, 16), layer("block.b", 16, 32)),
        groups=(ChannelGroup("block.a", 16, (member("block.a", "out", 16), member("block.b", "in", 16))),),
    )
    assert from_torch_pruning({"block": 0.5}, graph) == Policy.of([("block.a", Prune(8))])
    assert from_torch_pruning({"block": 0.5, "block.a": 0.25}, graph) == Policy.of([("block.a", Prune(12))])


def test_nni_lists_prune_and_quantise_and_later_entries_override() -> None:
    config = [
        {"op_types": ["Conv2d"], "sparsity_per_layer": 0.5},
        {"op_names": ["b"], "exclude": True},
        {"op_names": ["a", "c"], "quant_types": ["weight", "input"], "quant_bits": {"weight": 8, "input": 8}},
    ]
    assert from_nni(config, GRAPH) == Policy.of([("a", Prune(8)), ("a", Quantize(8, 8))])


@pytest.mark.parametrize(
    ("entry", "policy"),
    [
        ({"op_partial_names": ["a"], "total_sparsity": 0.75, "max_sparsity_per_layer": 0.5}, [("a", Prune(8))]),
        ({"op_types": ["default"], "quant_types": ["weight"], "quant_bits": 4}, [("a", Quantize(4, 32)), ("b", Quantize(4, 32))]),
        ({"op_names": ["a"], "quant_types": "weight", "quant_bits": {"weight": 4, "input": 8}}, [("a", Quantize(4, 32))]),
    ],
)  # fmt: skip
def test_nni_of_the_second_version(entry: dict[str, object], policy: list[tuple[str, Prune]]) -> None:
    assert from_nni([entry], GRAPH) == Policy.of(policy)


def test_nni_of_the_third_version() -> None:
    config = [{"op_names_re": ["[ab]"], "sparse_ratio": 0.75}, {"op_names": ["b"], "target_names": ["weight"], "quant_dtype": "int4"}]  # fmt: skip
    assert from_nni(config, GRAPH) == Policy.of([("a", Prune(4)), ("b", Prune(8)), ("b", Quantize(4, 32))])


@pytest.mark.parametrize(
    ("entry", "policy"),
    [
        ({"op_types": ["Conv2d"], "exclude_op_names": ["b"], "sparse_ratio": 0.5}, [("a", Prune(8))]),
        ({"op_types": ["Conv2d"], "exclude_op_names_re": ["b"], "sparse_ratio": 0.5}, [("a", Prune(8))]),
        ({"op_names": ["a"], "op_types": ["Linear"], "sparse_ratio": 0.5}, None),
        ({"op_names": ["a"], "target_settings": {"weight": {"sparse_ratio": 0.5, "granularity": "out_channel"}}}, [("a", Prune(8))]),
        ({"op_names": ["a"], "sparse_ratio": 0.5, "granularity": [1, -1, -1, -1]}, [("a", Prune(8))]),
        ({"op_names": ["a"], "sparse_ratio": 0.5, "granularity": [4, 4]}, None),
        ({"op_names": ["a"], "sparse_ratio": 0.5, "target_names": ["_output_"]}, None),
        ({"op_names": ["a"], "target_names": ["weight", "_input_0"], "quant_dtype": "int8"}, [("a", Quantize(8, 8))]),
        (
            {"op_names": ["a"], "target_settings": {"weight": {"quant_dtype": "int4"}, "_input_": {"quant_dtype": "uint8"}}},
            [("a", Quantize(4, 8))],
        ),
    ],
)  # fmt: skip
def test_nni_selects_layers_and_targets(entry: dict[str, object], policy: list[tuple[str, Prune]] | None) -> None:
    assert from_nni([entry], GRAPH) == Policy.of(policy or [])


HAWQ = {
    "quant_input": [8, "hook"],
    "quant_init_block_convbn": 8,
    "quant_act_int32": 16,
    "stage1.unit1.quant_act": 4,
    "stage1.unit1.quant_convbn1": 4,
    "stage1.unit1.quant_act1": 8,
    "stage1.unit1.quant_identity_convbn": 8,
}
"""As `bit_config.py` has it, of the first layers of a network."""


@pytest.mark.parametrize("bits", [[[4, 8], [8, 8]], [[4, 8], [8, 8], [8, 8]], {"a": [4, 8], "b": 8}])
def test_bits_by_name_and_in_order_with_and_without_what_stays_float(bits: object) -> None:
    assert from_bits(bits, GRAPH) == Policy.of([("a", Quantize(4, 8)), ("b", Quantize(8, 8))])  # type: ignore[arg-type]


def test_bits_of_minus_one_are_float_as_in_haq() -> None:
    assert from_bits([[8, -1], [8, 8]], GRAPH) == Policy.of([("a", Quantize(8, 32)), ("b", Quantize(8, 8))])


def test_hawqs_configuration_is_read_in_the_order_of_the_layers() -> None:
    graph = replace(GRAPH, layers=(layer("a", 3, 16), layer("b", 16, 32), layer("c", 16, 32)))
    pairs = [("a", Quantize(8, 8)), ("b", Quantize(4, 4)), ("c", Quantize(8, 4))]
    assert from_bits(HAWQ, graph) == Policy.of(pairs)


def test_channels_are_counts_or_shares_of_inputs_as_in_amc() -> None:
    assert from_channels([3, 8, 16], GRAPH) == Policy.of([("a", Prune(8)), ("b", Prune(16))])
    assert from_channels([1.0, 0.5, 0.25], GRAPH) == Policy.of([("a", Prune(8)), ("b", Prune(8))])
    assert from_channels({"b": 12}, GRAPH) == Policy.of([("a", Prune(12))])


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"ratios": {}}, "no policy that is known"),
        ("text", "no policy that is known"),
        ([], "no policy that is known"),
        ({"pruning_ratio_dict": {"a": 1.5}}, "1.5 is not a share"),
        ({"pruning_ratio_dict": ["a"]}, "cannot be read"),
        ({"bits": [8]}, "1 entries and the model 3 layers"),
        ({"bits": {"a": 64}}, "not a number of bits"),
        ({"bits": {"a": 3.7}}, "3.7 is not a number of bits"),
        ({"bits": {"a": [8, float("inf")]}}, "not a number of bits"),
        ({"bits": {"a": True}}, "True is not a number"),
        ({"pruning_ratio_dict": {"a": True}}, "True is not a number"),
        ({"config_list": [{"op_names": ["a"], "quant_bits": 3.7, "quant_types": ["weight"]}]}, "not a number of bits"),
        ([{"digest": "12", "number": 3, "score": 0.5}], "front of a run.*Give the run"),
        ({"schema": 1, "choices": {"a": {"prune": {"keep": 0}}}}, "keep is 0, not a whole number of 1 or more"),
        ({"schema": 1, "choices": {"a": {"prune": {"keep": 2.5}}}}, "keep is 2.5"),
        ({"config_list": [{"sparsity": 0.5}]}, "selects no layers"),
        ({"bits": {"elsewhere": 8}}, "no layer of this model"),
    ],
)
def test_files_that_cannot_be_used_say_why(data: object, says: str) -> None:
    with pytest.raises(InputError, match=says):
        read_foreign(data, GRAPH)


def test_policies_move_to_the_nearest_choices_that_are_offered() -> None:
    policy = Policy.of(
        [
            ("a", Prune(7)),
            ("b", Prune(31)),
            ("a", Quantize(5, 32)),
            ("b", LowRank(9)),
            ("b", Sparsify(0.3)),
            ("z", Prune(1)),
        ]
    )
    assert nearest(SPACE, policy, GRAPH.widths, {}) == Policy.of(
        [("a", Prune(8)), ("a", Quantize(4, 32)), ("b", LowRank(8)), ("b", Sparsify(0.25))]
    )


def test_keep_counts_carry_over_as_shares_of_the_other_models_widths() -> None:
    moved = nearest(SPACE, Policy.of([("a", Prune(32))]), GRAPH.widths, {"a": 64})
    assert moved == Policy.of([("a", Prune(8))])


def test_the_start_is_asked_first_and_inside_the_budget() -> None:
    toy = small_toy(budget=("40%",))
    space = toy.problem.space
    starts = space.decode([space.dense, space.cardinalities - 1])
    told = drive(WarmStart(Uniform(toy.problem, 0), toy.problem, starts), toy, 12)
    assert all(toy.problem.budget.holds(trial.cost) for trial in told[:2])
    assert starts[1] in {trial.policy for trial in told[:2]}
    assert len({trial.policy for trial in told}) == len(told)


def test_a_start_outside_the_budget_gives_up_what_hurts_least() -> None:
    """Greedy on known losses beats ten random orders of giving up."""
    toy = small_toy(budget=("50%",))
    (asked,) = WarmStart(Uniform(toy.problem, 0), toy.problem, [Policy()]).ask(1)
    blind = replace(toy.problem, sensitivity=None)
    others = [WarmStart(Uniform(blind, 0), blind, [Policy()], seed).ask(1)[0] for seed in range(10)]
    assert toy.evaluator.evaluate(asked) > max(toy.evaluator.evaluate(other) for other in others)


def test_what_is_known_is_not_tried_again() -> None:
    toy = small_toy()
    (smallest,) = toy.problem.space.decode(toy.problem.space.cardinalities[None] - 1)
    agent = WarmStart(Uniform(toy.problem, 0), toy.problem, [smallest])
    agent.tell([toy.trial(0, smallest)])
    assert smallest not in agent.ask(4)


def test_a_run_gives_its_front_the_best_score_first(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "old", {"budget": ["50ms"]})
    policies = [Policy.of([("a", Prune(keep))]) for keep in (12, 8, 4)]
    for number, (policy, score, seconds) in enumerate(zip(policies, (0.9, 0.7, 0.8), (3.0, 2.0, 1.0), strict=True)):
        run.append(Trial(number, policy, Cost(latency_s=seconds), score))
    run.close()
    assert read_start("old", tmp_path, GRAPH).policies == (policies[0], policies[2])
    run.write_front(run.trials())
    front = str(run.path / "front.json")
    assert read_start(front, tmp_path, GRAPH).policies == (policies[0], policies[2])


@pytest.mark.parametrize("suffix", [".json", ".yaml"])
def test_files_are_json_or_yaml(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"policy{suffix}"
    data = {"pruning_ratio_dict": {"a": 0.5}}
    path.write_text(json.dumps(data) if suffix == ".json" else yaml.safe_dump(data))
    assert read_start(str(path), tmp_path, GRAPH).policies == (Policy.of([("a", Prune(8))]),)


def test_what_is_neither_a_file_nor_a_run_is_told_with_the_nearest_run(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "demo-50ms", {})
    run.append(Trial(0, Policy.of([("a", Prune(8))]), Cost(latency_s=1.0), 0.5))
    run.close()
    with pytest.raises(UnknownNameError, match="demo-50ms"):
        find_start("demo-5ms", tmp_path)


def test_a_run_without_scores_and_a_file_that_is_no_json_are_refused(tmp_path: Path) -> None:
    RunDir.create(tmp_path / "new", {}).close()
    with pytest.raises(InputError, match="no scored trials"):
        find_start("new", tmp_path)
    with pytest.raises(InputError, match=r"no file lost\.yaml"):
        find_start("lost.yaml", tmp_path)
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        find_start(str(tmp_path / "broken.json"), tmp_path)


def test_an_agent_whose_trials_all_fail_still_gets_its_start() -> None:
    toy = small_toy()
    starts = toy.problem.space.decode(toy.problem.space.cardinalities[None] - 1)
    agent = WarmStart(Uniform(toy.problem, 0), toy.problem, starts)
    trials = [replace(toy.trial(0, policy), state="failed", score=None, reason="lost") for policy in agent.ask(1)]
    agent.tell(trials)
    assert agent.ask(1)
