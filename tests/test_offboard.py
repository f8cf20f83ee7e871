"""Machines that automc is not on: the kit that goes there, and the file that comes back."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import networks
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from automc.cli.main import main
from automc.cli.profile import _say_kit
from automc.devices.cpu import Cpu
from automc.devices.device import device_path
from automc.devices.kit import patterned
from automc.devices.probe import conv_model
from automc.devices.probe_models import probe_set
from automc.errors import InputError, MissingError, UnknownNameError
from automc.export.sparse import MASK, pack_zeros
from automc.job import Silent
from automc.offboard import emit_kit, import_file, unknown_target
from automc.predict.device_file import DeviceFile, keep_device
from automc.predict.profile import profile_model
from automc.predict.targets import Recorded, is_device, open_device
from automc.profiling import Subject, profile_subject

_HELLO = "automc: frames follow\\n"


class Said(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, text: str, level: str = "info") -> None:
        self.messages.append(text)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOMC_CACHE", str(tmp_path / "cache"))


def subject() -> Subject:
    return Subject.of_batch(networks.make("plain"), (networks.images(2),), 1, unknown_target(), label="plain")


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        few = [probe for probe in probe_set() if probe.group == "convert"]
        patch.setattr("automc.offboard.probe_set", lambda: few)
        return emit_kit(tmp_path_factory.mktemp("kit") / "kit.zip", subject(), Silent(), candidates=9)


def run(kit: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The kit as its user runs it, with nothing of this checkout on the path."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"AUTOMC_CACHE": str(folder / "there")}
    command = [sys.executable, str(kit), "--time", "2", "--out", "device.jsonl", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def returned(kit: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("target")
    done = run(kit, folder, "--out", "my device.jsonl")
    assert done.returncode == 0, done.stderr
    assert "candidates: 9 of 9" in done.stdout
    assert "--from-kit 'my device.jsonl'" in done.stdout
    return folder / "my device.jsonl"


def kinds(path: Path) -> list[str]:
    return [json.loads(line)["kind"] for line in path.read_text().splitlines() if line.endswith("}")]


def test_a_kit_needs_numpy_and_onnxruntime_alone(kit: Path, tmp_path: Path) -> None:
    script = f"import sys; sys.path.insert(0, {str(kit)!r}); import automc.devices.agent; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-I", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    imported = {name.partition(".")[0] for name in done.stdout.split()}
    assert {"numpy", "onnxruntime"} <= imported
    assert not imported & {"click", "onnx", "rich", "scipy", "sklearn", "torch", "yaml"}


def test_a_python_that_is_too_old_for_a_kit_says_so(kit: Path) -> None:
    with zipfile.ZipFile(kit) as archive:
        source = archive.read("__main__.py").decode()
    ast.parse(source, feature_version=(3, 4))
    script = f"import sys; sys.version_info = (3, 9, 18); exec({source!r})"
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("This needs Python 3.10 or later; this one is 3.9.")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--threads", "0"), 2, "0 threads cannot run anything. Use 1 or more."),
        (("--out", "folder"), 4, "Cannot use folder: Is a directory. Give another --out, or free some space."),
        (("--out", "file/x.jsonl"), 4, "Cannot use"),
    ],
)
def test_what_a_kit_cannot_do_is_said_in_a_sentence(
    arguments: tuple[str, ...], code: int, said: str, kit: Path, tmp_path: Path
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    done = run(kit, tmp_path, *arguments)
    assert done.returncode == code
    assert done.stderr.startswith(said)
    assert done.stderr.count("\n") == 1


def test_a_kit_of_which_nothing_runs_there_says_why(kit: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(kit) as archive, zipfile.ZipFile(tmp_path / "newer.zip", "w") as newer:
        for name in archive.namelist():
            data = archive.read(name)
            if name.startswith("candidates/"):
                model = onnx.load_from_string(data)
                model.ir_version = 99
                data = model.SerializeToString()
            newer.writestr(name, data)
    done = run(tmp_path / "newer.zip", tmp_path)
    assert done.returncode == 2
    said = done.stderr.splitlines()[-1]
    assert re.match(r"None of 9 candidates runs here: .*IR version.*pip install --upgrade onnxruntime", said)


def values(model: bytes) -> dict[str, np.ndarray]:
    """Initializer -> what it holds, of those that can be weights, codes or integer biases."""
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load_from_string(model).graph.initializer}
    kinds = ("float32", "float16", "int2", "uint2", "int4", "uint4", "int8", "uint8", "int32")
    return {name: array for name, array in tensors.items() if array.size > 1 and str(array.dtype) in kinds}


def of_layers(model: bytes) -> set[str]:
    """Names of initializers that say how codes are to be read."""
    nodes = onnx.load_from_string(model).graph.node
    return {n for node in nodes if node.op_type.endswith("quantizeLinear") or node.op_type == "QuantizeLinear" for n in node.input[1:]}  # fmt: skip


def test_a_kit_holds_no_weights_of_the_model(kit: Path) -> None:
    own = values(subject().dense_onnx)
    with zipfile.ZipFile(kit) as archive:
        candidates = [archive.read(name) for name in archive.namelist() if name.startswith("candidates/")]
    assert len(candidates) == 9
    assert kit.stat().st_size < 4e6
    taken = np.concatenate([array.ravel() for array in own.values()])
    for model in candidates:
        for name, array in values(model).items():
            if array.dtype == np.float32 and name not in of_layers(model):
                assert np.isin(array, taken[taken != 0]).mean() < 0.01, name


@pytest.mark.parametrize(
    ("network", "space", "kinds"),
    [
        ("plain", "mixed", {"float32", "int32", "int4", "int8", "uint2", "uint4", "uint8"}),
        ("plain", "sparse", {"float32"}),
        ("mobile", "default", {"float32", "int8", "int32"}),
    ],
)
def test_every_weight_of_any_size_is_a_pattern_and_the_model_still_runs(
    network: str, space: str, kinds: set[str]
) -> None:
    given = Subject.of_batch(networks.make(network), (networks.images(2),), 1, unknown_target(), space)
    build, offered = given.builder(), given.offered.space
    inputs = [tensor.numpy() for tensor in given.example]
    seen: set[str] = set()
    for policy in offered.decode(offered.sample(6, np.random.default_rng(0))):
        model = build(policy)
        if space == "sparse":
            model = pack_zeros(onnx.load_from_string(model)).SerializeToString()
        sent = patterned(model)
        assert sent == patterned(model)
        before, after, stay = values(model), values(sent), of_layers(model)
        for name, array in before.items():
            assert (after[name].shape, after[name].dtype) == (array.shape, array.dtype)
            whole = array.astype(np.float64).ravel()
            if name in stay or name.endswith(MASK):
                assert np.array_equal(after[name], array)
            elif whole.any():
                assert not np.array_equal(after[name], array), name
                seen.add(str(array.dtype))
        assert all(np.isfinite(output).all() for output in Cpu(1).session(sent).run(*inputs))
    assert seen == kinds


def test_a_pattern_has_the_size_of_what_it_stands_for_and_no_denormals() -> None:
    model = onnx.load_from_string(conv_model(64, 64))
    whole = numpy_helper.to_array(model.graph.initializer[0])
    for factor in (1e-3, 1.0, 1e-30, 0.0):
        model.graph.initializer[0].CopyFrom(numpy_helper.from_array(whole * np.float32(factor), "w"))
        [packed] = values(patterned(model.SerializeToString())).values()
        assert len(np.unique(packed)) <= 1024
        spread = max(factor, 2.0**-20) if factor else 0.0
        assert packed.std() == pytest.approx(spread, rel=0.5)
        assert np.abs(packed).min() >= np.finfo(np.float32).tiny * bool(factor)


def test_what_a_kit_measured_prices_the_model_here(returned: Path) -> None:
    device = import_file(returned, Silent(), name="pi")
    assert device.off_board
    assert len(device.heads) == 1
    opened = open_device("pi")
    assert isinstance(opened, Recorded)
    assert opened.key == device.key
    there = Subject.of_batch(networks.make("plain"), (networks.images(2),), 1, opened, label="plain")
    arrays = [tensor.numpy() for tensor in there.example]
    build = lambda policy: pytest.fail("measured again")  # noqa: E731
    profile = profile_model(opened, build, there.offered.graph, there.offered.space, arrays, there.dense_onnx)
    assert len(profile.candidates) == 9
    assert sum(place is not None for place in profile.candidates[0].places) == len(there.offered.graph.layers)


def test_another_model_cannot_be_measured_there_from_here(returned: Path) -> None:
    import_file(returned, Silent(), name="pi")
    other = Subject.of_batch(networks.make("mobile"), (networks.images(2),), 1, open_device("pi"))
    with pytest.raises(MissingError, match="pi was measured with a kit and cannot be measured from here"):
        profile_subject(other, Silent())


def test_each_name_is_a_device_of_its_own_and_none_is_this_machine(returned: Path) -> None:
    keep_device(device_path(Cpu(1).key), Cpu(1), [], Silent())
    by_host, pi = import_file(returned, Silent()), import_file(returned, Silent(), name="my pi é")
    again = import_file(returned, Silent(), name="tr")
    assert len({by_host.key, pi.key, again.key, Cpu(1).key}) == 4
    assert open_device("my pi é").key == pi.key
    assert open_device("tr").key == again.key
    assert open_device(by_host.environment["host"]).key == by_host.key
    local = DeviceFile.read(device_path(Cpu(1).key))
    assert local is not None
    assert not local.off_board


def test_a_file_that_is_taken_in_twice_changes_nothing(returned: Path, tmp_path: Path) -> None:
    said = Said()
    size = import_file(returned, said, name="pi").path.stat().st_size
    assert import_file(returned, said, name="pi").path.stat().st_size == size
    assert not any("another machine" in message for message in said.messages)


def test_an_equal_machine_of_the_same_host_name_is_said(returned: Path, tmp_path: Path) -> None:
    import_file(returned, Silent())
    twin = tmp_path / "twin.jsonl"
    twin.write_text(returned.read_text().replace('"seconds": ', '"seconds": 1').replace('"measured_at": "2', '"measured_at": "3').replace('"size_bytes": ', '"size_bytes": 1'))  # fmt: skip
    said = Said()
    import_file(twin, said)
    assert any("give --name where it is another machine" in message for message in said.messages)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "has no name"),
        (" ", "has no name"),
        ("cpu", "--device cpu already means a device of automc"),
        ("ssh:pi", "--device ssh:pi already means"),
        ("../x", "'../x' cannot be the name of a device"),
        ("..", "'..' cannot be"),
        ("a\nb", "cannot be"),
        ("pi", "'pi' is already the name of another machine"),
    ],
)
def test_a_name_that_would_not_be_found_is_refused(
    name: str, reason: str, returned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text(re.sub(r'"host": "[^"]*"', '"host": "elsewhere"', returned.read_text()))
    import_file(other, Silent(), name="pi")
    assert main(["profile", "--from-kit", str(returned), "--name", name]) == 2
    assert reason in capsys.readouterr().err


def test_a_kit_of_an_earlier_automc_is_refused(returned: Path, tmp_path: Path) -> None:
    old = tmp_path / "old.jsonl"
    old.write_text(re.sub(r'"subject": "[^"]*", ', "", returned.read_text()))
    with pytest.raises(InputError, match="Emit the kit again"):
        import_file(old, Silent())


def test_a_kit_that_was_broken_off_goes_on(kit: Path, returned: Path, tmp_path: Path) -> None:
    lines = returned.read_text().splitlines(keepends=True)
    cut = [line for line in lines if json.loads(line)["kind"] in ("space", "probe", "device", "candidate")][:-4]
    (tmp_path / "device.jsonl").write_text("".join(cut) + lines[-2][:50])
    with pytest.raises(InputError, match=r"1 damaged line.*broken off"):
        import_file(tmp_path / "device.jsonl", Silent(), strict=True)
    said = Said()
    assert import_file(tmp_path / "device.jsonl", said).heads == ()
    assert any("run it again" in message for message in said.messages)
    with pytest.raises(
        MissingError, match=r"broken off before its models were measured whole.*Run the kit again there"
    ):
        open_device(import_file(tmp_path / "device.jsonl", Silent(), name="pi").name).node_times(b"", [])
    assert run(kit, tmp_path).returncode == 0
    assert kinds(tmp_path / "device.jsonl").count("candidate") == 9
    assert kinds(tmp_path / "device.jsonl").count("probe") == kinds(returned).count("probe")
    assert len(import_file(tmp_path / "device.jsonl", Silent()).heads) == 1


def test_a_kit_that_was_broken_off_in_its_probes_is_said_to_be(returned: Path, tmp_path: Path) -> None:
    lines = returned.read_text().splitlines(keepends=True)
    (tmp_path / "device.jsonl").write_text("".join(lines[: kinds(returned).index("device")]))
    with pytest.raises(
        InputError, match=r"device.jsonl was broken off in its probes. Run the kit again there: it goes on"
    ):
        import_file(tmp_path / "device.jsonl", Silent())


def test_a_kit_adds_nothing_to_the_file_of_another_device(kit: Path, returned: Path, tmp_path: Path) -> None:
    (tmp_path / "device.jsonl").write_text(returned.read_text().replace(Cpu(1).key, "cpu-other"))
    before = (tmp_path / "device.jsonl").read_bytes()
    done = run(kit, tmp_path)
    assert done.returncode == 2
    assert "give another --out" in done.stderr
    assert (tmp_path / "device.jsonl").read_bytes() == before


def test_a_file_of_another_machine_is_said_and_refused_when_strict(
    returned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    processor = json.dumps(Cpu(1).environment()["processor"])
    other = tmp_path / "other.jsonl"
    other.write_text(returned.read_text().replace(processor, '"Cortex-A76"'))
    said = Said()
    import_file(other, said)
    assert any("processor Cortex-A76 there" in message for message in said.messages)
    assert main(["profile", "--from-kit", str(other), "--strict"]) == 2
    assert "measured elsewhere" in capsys.readouterr().err
    other.write_text(returned.read_text().replace('"runtime_version": "', '"runtime_version": "0.'))
    with pytest.raises(InputError, match="runtime version 0"):
        import_file(other, Silent(), strict=True)


def test_what_is_no_device_file_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no file"):
        import_file(tmp_path / "nothing.jsonl", Silent())
    (tmp_path / "some.jsonl").write_text("{}\n")
    with pytest.raises(InputError, match="not a device file of a kit"):
        import_file(tmp_path / "some.jsonl", Silent())
    with pytest.raises(UnknownNameError, match="ssh:USER@HOST"):
        open_device("nowhere")
    assert is_device("ssh:user@host")
    assert not is_device("nowhere")


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("kit.txt", 2, "Give a name that ends in .zip"),
        ("kit", 2, "is no name for a kit"),
        ("folder.zip", 2, "is a folder"),
        ("file/kit.zip", 4, "Cannot write"),
    ],
)
def test_where_no_kit_can_be_written_is_said_before_anything_is_loaded(
    name: str,
    code: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.zip").mkdir()
    monkeypatch.setattr("automc.cli.profile._emit", lambda *_: pytest.fail("work was begun"))
    assert main(["profile", "--emit-kit", str(tmp_path / name)]) == code
    assert said in " ".join(capsys.readouterr().err.split())


def test_a_cache_that_cannot_be_written_is_said_before_anything_is_measured(
    returned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("AUTOMC_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr("automc.predict.targets.open_device", lambda *_: pytest.fail("work was begun"))
    for arguments in (["--probes-only"], ["--few", "20"], ["--from-kit", str(returned), "--name", "pi"]):
        assert main(["profile", *arguments]) == 4
        said = "".join(capsys.readouterr().err.split())
        assert f"Cannotwrite{tmp_path}/file/cache/devices" in said


def test_what_to_do_with_a_kit_can_be_copied(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "ki t é.zip").touch()
    _say_kit(tmp_path / "ki t é.zip", as_json=False)
    said = capsys.readouterr().out
    assert "&& python3 'ki t é.zip'" in said
    assert "Python 3.10 or later" in said
