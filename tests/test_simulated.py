"""Simulated accelerators: their closed forms, the predictor over them, and searches that end in mixed precision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import synthetic
from test_engine import OPTIONS, data, trained

import automc
from automc.cli.table import budget_lines, result_table
from automc.devices.bitfusion import BitFusion, bitfusion
from automc.devices.eyeriss import Eyeriss, eyeriss
from automc.devices.simulated import BITS, Work, dram_bits
from automc.errors import MissingError
from automc.faults import find_setting_faults
from automc.policy import LowRank, Policy, Prune, Quantize
from automc.predict.simulated import SimulatedPredictor
from automc.predict.targets import device_measures, open_device
from automc.recipe import Job
from automc.space import Domain, SearchSpace

GRAPH, DENSE = synthetic.graph(), synthetic.build(Policy())
BY_BITS = SearchSpace(
    (
        Domain("a", "prune", (None, Prune(24))),
        Domain("a", "low_rank", (None, LowRank(12))),
        *(Domain(layer.name, "quantize", (None, *(Quantize(*pair) for pair in BITS))) for layer in GRAPH.layers),
    )
)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOMC_CACHE", str(tmp_path / "cache"))


def work(bits: tuple[int, int] = (8, 8), **changes: float) -> Work:
    """A 3x3 convolution of 256 -> 256 channels at 14 x 14: enough of everything to keep the array busy."""
    sizes = {"depth": 2304, "columns": 256, "passes": 196, "weights": 589824, "inputs": 50176, "outputs": 50176}
    values = {**sizes, "weight_bits": bits[0], "activation_bits": bits[1], **changes}
    return Work(**{name: np.array([float(value)]) for name, value in values.items()})


def test_bits_that_fit_more_often_into_eight_compute_faster() -> None:
    array = BitFusion()
    full = array.compute_cycles(work())[0]
    assert full == 196 * 2304 / 32 * 256 / 16  # passes x steps x column tiles
    for bits, times in (((4, 4), 4), ((4, 8), 2), ((8, 4), 2), ((3, 3), 4), ((6, 6), 1), ((5, 8), 1), ((2, 4), 8)):
        assert array.fused(work(bits))[0] == times
        assert array.compute_cycles(work(bits))[0] == full / times
    assert array.fused(work((2, 2)))[0] == 16
    assert array.fused(work((1, 1)))[0] == 64
    assert array.compute_cycles(work((2, 2)))[0] == 196 * np.ceil(2304 / 32 / 16) * 16
    assert array.compute_cycles(work((16, 16)))[0] == 4 * full


def test_what_does_not_fill_the_array_idles() -> None:
    array = BitFusion()
    depthwise = {"depth": 9, "columns": 1, "passes": 196 * 256}
    for bits, together in (
        ((8, 8), 3),
        ((8, 4), 7),
        ((4, 4), 14),
        ((2, 2), 16),
    ):  # 16 columns, 32 rows, 9 of them for a channel
        assert array.compute_cycles(work(bits, **depthwise))[0] == np.ceil(196 * 256 / together)
    assert array.compute_cycles(work(columns=17))[0] == array.compute_cycles(work(columns=32))[0]


def test_the_longer_of_computing_and_moving_data_counts() -> None:
    array = BitFusion()
    heavy = work(passes=1, inputs=256, outputs=256)  # every weight is used once
    assert array.cycles(heavy)[0] == pytest.approx(dram_bits(heavy, 524288, 262144)[0] / 192)
    assert array.cycles(work())[0] == array.compute_cycles(work())[0]


def test_memory_is_read_again_for_what_the_buffers_do_not_hold() -> None:
    small = work(weights=1000, inputs=2000, outputs=500)
    assert dram_bits(small, 1e6, 1e6)[0] == 8 * (1000 + 2000 + 500)
    assert dram_bits(small, 4000, 8000)[0] == 8 * (2000 + 2 * 1000 + 500)  # inputs in two parts, weights twice
    assert dram_bits(small, 4000, 1000)[0] == 8 * (1000 + 2 * 2000 + 500)  # weights in two parts, inputs twice


@pytest.mark.parametrize("array", [BitFusion(), Eyeriss()])
def test_fewer_bits_take_less_energy(array: BitFusion | Eyeriss) -> None:
    joules = [float(array.energy_j(work(bits))[0]) for bits in ((16, 16), *BITS)]
    assert joules == sorted(joules, reverse=True)
    assert len(set(joules)) == len(joules)


def test_eyeriss_is_no_faster_with_fewer_bits_unless_memory_is_the_limit() -> None:
    array, few = Eyeriss(), work((2, 2))
    assert array.latency_s(few)[0] == few.macs[0] / (168 * 200e6)
    heavy = {"passes": 1, "inputs": 256, "outputs": 256}
    assert array.latency_s(work((16, 16), **heavy))[0] > 3 * array.latency_s(work((4, 4), **heavy))[0]


def test_eyeriss_needs_most_for_dram_where_weights_are_used_once() -> None:
    heavy = work((16, 16), passes=1, inputs=256, outputs=256)
    dram = 200 * 0.86e-12 * dram_bits(heavy, 442368, 442368)[0] / 16
    assert Eyeriss().energy_j(heavy)[0] == pytest.approx(dram, rel=0.06)
    assert Eyeriss().energy_j(heavy)[0] > dram


@pytest.fixture(scope="module")
def predictor() -> SimulatedPredictor:
    return SimulatedPredictor.of(BitFusion(), GRAPH, BY_BITS, DENSE, synthetic.BATCH)


def test_policies_cost_what_their_layers_cost(predictor: SimulatedPredictor) -> None:
    codes = BY_BITS.sample(50, np.random.default_rng(0))
    together = predictor.predict(codes)
    for index in range(0, 50, 7):
        alone = predictor.predict(codes[index : index + 1])
        assert together[index] == alone[0]
    assert set(together[0].source.values()) == {"simulated"}
    joules = predictor.layers_j(codes)
    assert joules is not None
    assert joules.sum(1) == pytest.approx(together.energy_j)
    dense = predictor.predict(BY_BITS.dense[None])
    assert dense.macs[0] == GRAPH.macs
    assert dense.size_bytes[0] == pytest.approx(len(DENSE), rel=1e-6)
    assert len(predictor.predict(codes[:0])) == 0


def test_each_choice_alone_pays(predictor: SimulatedPredictor) -> None:
    policies = [[("a", Prune(24))], [("a", LowRank(12))], *([("a", Quantize(*pair))] for pair in BITS)]
    costs = predictor.predict(BY_BITS.encode([Policy(), *(Policy.of(choices) for choices in policies)]))
    assert costs.energy_j is not None
    assert (costs.energy_j[1:] < costs.energy_j[0]).all()
    assert (np.diff(costs.energy_j[3:]) < 0).all()
    assert (costs.latency_s[1:] <= costs.latency_s[0]).all()


def test_a_narrower_space_is_priced_alike(predictor: SimulatedPredictor) -> None:
    narrow = SearchSpace(BY_BITS.domains[2:])
    policy = Policy.of([("b", Quantize(4, 4))])
    before, after = (
        predictor.predict(BY_BITS.encode([policy])),
        predictor.narrowed(narrow).predict(narrow.encode([policy])),
    )
    assert before[0] == after[0]
    assert predictor.corrected([(policy, 1.0)]) is predictor


def test_nothing_can_be_measured_there() -> None:
    for device in (bitfusion(), eyeriss()):
        assert not device_measures(device)
        assert device.environment()["processor"] == "simulated"
        with pytest.raises(MissingError, match="is simulated"):
            device.measure({}, [])
        with pytest.raises(MissingError, match="is simulated"):
            device.node_times(b"", [])
    assert open_device("bitfusion", 2).session(DENSE).run(*synthetic.inputs())[0].shape == (synthetic.BATCH, 10)


def test_energy_budgets_are_for_devices_that_tell_energy() -> None:
    assert find_setting_faults(Job(budget=("30mJ",), device="eyeriss")) == []
    [fault] = find_setting_faults(Job(budget=("30mJ",), device="cpu"))
    assert "no energy figures" in str(fault)


@pytest.fixture(scope="module", params=[("bitfusion", "40%", "latency_s"), ("eyeriss", "35%energy", "energy_j")])
def searched(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[automc.Compressed, str, float]:
    """What a search found, the limited metric, and the share of the dense model's that it may take."""
    device, budget, metric = request.param
    options = {**OPTIONS, "recover": "0", "profile": "2s", "trials": 4, "device": device, "budget": budget}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOMC_CACHE", str(tmp_path_factory.mktemp("cache")))
        found = automc.compress(trained(), data=data(), runs=str(tmp_path_factory.mktemp("runs")), **options)
    return found, metric, float(budget.partition("%")[0]) / 100


def test_a_search_ends_in_mixed_precision_within_the_budget(searched: tuple[automc.Compressed, str, float]) -> None:
    result, metric, share = searched
    best, dense = result.summary.best, result.summary.dense
    assert best is not None
    taken, whole = best.cost.get(metric), dense.cost.get(metric)
    assert taken is not None
    assert whole is not None
    assert taken <= share * whole
    bits = {(spec.weight_bits, spec.activation_bits) for _, spec in result.policy if isinstance(spec, Quantize)}
    assert bits
    assert bits <= set(BITS)
    assert best.validation >= dense.validation - 0.1


def test_what_was_found_is_said_to_be_simulated(searched: tuple[automc.Compressed, str, float]) -> None:
    result = searched[0]
    best, dense = result.summary.best, result.summary.dense
    assert best is not None
    for cost in (best.cost, dense.cost):
        assert cost.source["latency_s"] == cost.source["energy_j"] == "simulated"
    certificate = result.certificate
    assert (certificate.source, certificate.energy_j) == ("simulated", best.cost.energy_j)
    assert certificate.environment["processor"] == "simulated"
    assert (certificate.rounds_s, certificate.environment["notes"]) == ({}, "not measured, simulated")
    assert not {"measured_at", "noisy"} & certificate.environment.keys()
    assert certificate.export_error < 1e-3
    lines = budget_lines(result.summary)
    assert any("as simulated." in line for line in lines)
    assert any("nothing was measured on" in line for line in lines)
    labels = [str(label) for label in result_table(result.summary).columns[0].cells]
    assert {"latency, simulated", "energy, simulated"} <= set(labels)
    assert not any("measured" in label or "interval" in label for label in labels)
