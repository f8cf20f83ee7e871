"""Models and weights from what a user types, and what is said when they cannot be had."""

from __future__ import annotations

import pickle
import sys
from collections import OrderedDict
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file, save_file, save_model
from small_data import write_models, write_python
from torch import Tensor, nn

from automc.errors import InputError, MissingError, UnknownNameError
from automc.evaluate.models import apply_weights, load_model, model_digest, read_weights


@pytest.fixture
def nets(tmp_path: Path) -> str:
    return write_models(tmp_path)


def weights_of(nets: str, seed: int = 1) -> dict[str, Tensor]:
    """A state dict of the network `build`."""
    torch.manual_seed(seed)
    return load_model(f"{nets}:build").state_dict()


def test_the_default_is_the_trained_demo() -> None:
    model = load_model(None)
    assert not model.training
    assert model_digest(model) == model_digest(load_model("demo"))


def test_a_model_comes_from_a_function_in_a_file_in_evaluation_mode(nets: str) -> None:
    model = load_model(f"{nets}:build")
    assert not model.training
    assert model(torch.zeros(2, 3, 8, 8)).shape == (2, 4)


def test_a_model_may_stand_in_a_file_ready_made(nets: str) -> None:
    assert isinstance(load_model(f"{nets}:INSTANCE"), nn.Module)


def test_a_model_comes_from_an_installed_package() -> None:
    assert type(load_model("torch.nn:Flatten")) is nn.Flatten


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bild", r"has no function 'bild'. Did you mean 'build'\?"),
        ("number", "number returned int, not a model"),
        ("LIMIT", "is of type int, not a function"),
        ("needs_path", "needs_path raised TypeError"),
    ],
)
def test_a_function_that_gives_no_model_says_why(nets: str, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_model(f"{nets}:{name}")


@pytest.mark.parametrize(
    ("spec", "closest"),
    [("dmeo", "demo"), ("torchvsion:NAME", "torchvision:NAME"), ("tim:NAME", "timm:NAME"), ("demo:v2", "demo")],
)
def test_an_unknown_kind_names_the_closest(spec: str, closest: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        load_model(spec)
    assert caught.value.closest == closest


# zoos


def test_torchvision_models_are_known_by_name(torchvision: ModuleType, tmp_path: Path) -> None:
    weights = torchvision.models.squeezenet1_1(num_classes=3).state_dict()
    save_file(weights, tmp_path / "w.safetensors")
    model = load_model("torchvision:squeezenet1_1", tmp_path / "w.safetensors", classes=3)
    assert all(torch.equal(model.state_dict()[name], weights[name]) for name in weights)
    with pytest.raises(UnknownNameError) as caught:
        load_model("torchvision:resnet81")
    assert caught.value.closest in ("resnet18", "resnet101")


@pytest.fixture
def zoo(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A stand-in for timm that cannot download."""

    def create_model(name: str, pretrained: bool, **options: int) -> nn.Module:
        if pretrained:
            raise OSError("no network")
        return nn.Linear(3, options.get("num_classes", 1000))

    module = ModuleType("timm")
    module.list_models = lambda: ["linear", "transformer"]  # type: ignore[attr-defined]
    module.create_model = create_model  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "timm", module)
    return module


def test_timm_models_are_known_by_name(zoo: ModuleType, tmp_path: Path) -> None:
    save_file({"weight": torch.ones(5, 3), "bias": torch.ones(5)}, tmp_path / "w.safetensors")
    model = load_model("timm:linear", tmp_path / "w.safetensors", classes=5)
    assert model(torch.ones(1, 3)).tolist() == [[4.0] * 5]
    with pytest.raises(UnknownNameError, match="Did you mean 'linear'"):
        load_model("timm:linaer")


def test_weights_that_cannot_be_downloaded_are_asked_for(zoo: ModuleType) -> None:
    with pytest.raises(MissingError, match=r"no network.*--weights"):
        load_model("timm:linear")


@pytest.mark.parametrize("kind", ["timm", "torchvision"])
def test_an_extra_that_is_not_installed_is_named(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, kind, None)
    monkeypatch.setitem(sys.modules, f"{kind}.models", None)
    with pytest.raises(MissingError, match=r"pip install 'automc\[vision\]'") as caught:
        load_model(f"{kind}:resnet18")
    assert caught.value.exit_code == 4


# weights


@pytest.mark.parametrize("nested", [(), ("state_dict",), ("model",), ("weights",), ("net",), ("model", "state_dict")])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model.", "module._orig_mod."])
def test_torch_files_may_nest_and_prefix_the_weights(
    nets: str, tmp_path: Path, nested: tuple[str, ...], prefix: str
) -> None:
    weights = weights_of(nets)
    content: dict[str, object] = {prefix + name: tensor for name, tensor in weights.items()}
    for key in nested:
        content = {
            key: content,
            "epoch": 3,
            "optimizer": {"state": {0: {"step": torch.ones(1)}}, "param_groups": [{"lr": 0.1}]},
        }
    torch.save(content, tmp_path / "w.pt")
    loaded = load_model(f"{nets}:build", tmp_path / "w.pt").state_dict()
    assert all(torch.equal(loaded[name], weights[name]) for name in weights)


def test_a_submodule_called_like_a_prefix_keeps_its_name(tmp_path: Path) -> None:
    for name in ("module", "model"):
        model = nn.Sequential(OrderedDict({name: nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))}))
        for prefix in ("", "module."):
            torch.save(
                {prefix + key: torch.ones_like(value) for key, value in model.state_dict().items()}, tmp_path / "w.pt"
            )
            nn.init.zeros_(model[0][1].weight)
            apply_weights(model, tmp_path / "w.pt")
            assert model[0][1].weight.eq(1).all()


def test_a_file_of_several_models_names_them(tmp_path: Path) -> None:
    weights = {"weight": torch.zeros(1)}
    torch.save({"net": weights, "average": weights, "epoch": 3}, tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"several models: net, average. .*torch.load\(file\)\['net'\]"):
        read_weights(tmp_path / "w.pt")


def test_safetensors_are_read(nets: str, tmp_path: Path) -> None:
    weights = weights_of(nets)
    save_file(weights, tmp_path / "w.safetensors")
    loaded = load_model(f"{nets}:build", tmp_path / "w.safetensors").state_dict()
    assert all(torch.equal(loaded[name], weights[name]) for name in weights)


def test_the_counters_of_batch_norms_may_be_missing(nets: str, tmp_path: Path) -> None:
    weights = {name: tensor for name, tensor in weights_of(nets).items() if "num_batches" not in name}
    torch.save(weights, tmp_path / "w.pt")
    assert torch.equal(load_model(f"{nets}:build", tmp_path / "w.pt").state_dict()["fc.bias"], weights["fc.bias"])


@pytest.mark.parametrize("tied", [True, False])
def test_tied_weights_may_be_given_by_one_of_their_names(tmp_path: Path, tied: bool) -> None:
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5, bias=False))
    if tied:
        model[1].weight = model[0].weight
    save_model(model, tmp_path / "w.safetensors")
    weights = load_file(tmp_path / "w.safetensors")
    assert len(weights) == 2 - tied
    save_file({name: value for name, value in weights.items() if name == "0.weight"}, tmp_path / "w.safetensors")
    if tied:
        nn.init.zeros_(model[0].weight)
        apply_weights(model, tmp_path / "w.safetensors")
        assert torch.equal(model[1].weight, weights["0.weight"])
    else:
        with pytest.raises(InputError, match=r"1\.weight is 5x3 in the model, missing from the file"):
            apply_weights(model, tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fc.weight": torch.zeros(10, 8)}, "fc.weight is 4x8 in the model, 10x8 in the file"),
        ({"fc.weight": None}, "fc.weight is 4x8 in the model, missing from the file"),
        ({"head.weight": torch.zeros(2, 8)}, r"the model has no head.weight \(2x8\)"),
        ({"conv.weight": torch.zeros(8, 1, 3, 3), "fc.weight": None}, "conv.weight is 8x3x3x3 in the model, 8x1x3x3"),
    ],
)
def test_weights_that_do_not_fit_name_the_first_key_and_both_shapes(
    nets: str, tmp_path: Path, change: dict[str, Tensor | None], message: str
) -> None:
    weights = {**weights_of(nets), **change}
    torch.save({name: tensor for name, tensor in weights.items() if tensor is not None}, tmp_path / "w.pt")
    with pytest.raises(InputError, match=rf"{message}.*; the first names of these are {next(iter(weights))}, "):
        load_model(f"{nets}:build", tmp_path / "w.pt")


def test_a_pickled_module_is_told_from_its_weights(tmp_path: Path) -> None:
    torch.save(nn.Sequential(nn.Linear(2, 2)), tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"pickles torch\.nn\.modules\.\S+, as torch\.save\(model\)") as caught:
        read_weights(tmp_path / "w.pt")
    assert str(caught.value).endswith("Save its state_dict: torch.save(model.state_dict(), file).")
    assert "\x1b" not in str(caught.value)


class Marker:
    """Leaves a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (Path.touch, (self.path,))


def test_nothing_in_a_weights_file_is_executed(tmp_path: Path) -> None:
    marker = tmp_path / "was-here"
    torch.save({"weight": torch.zeros(1), "extra": Marker(marker)}, tmp_path / "w.pt")
    (tmp_path / "p.pt").write_bytes(pickle.dumps(Marker(marker)))
    for name in ("w.pt", "p.pt"):
        with pytest.raises(InputError, match="is not a file of tensors"):
            read_weights(tmp_path / name)
    assert not marker.exists()


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 torn", b"\x80\x02]q\x00."])
def test_a_file_that_holds_no_tensors_says_so(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=r"is not a (file of tensors|safetensors file)|holds no named tensors"):
        read_weights(tmp_path / name)


def test_a_file_of_something_else_says_so(tmp_path: Path) -> None:
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    torch.save({"epoch": 3}, tmp_path / "numbers.pt")
    for name in ("list.pt", "numbers.pt"):
        with pytest.raises(InputError, match="holds no named tensors"):
            read_weights(tmp_path / name)
    with pytest.raises(InputError, match="There is no weights file"):
        read_weights(tmp_path / "nowhere.pt")


# the digest


def test_the_digest_tells_weights_and_classes_apart(nets: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = load_model(f"{nets}:build")
    before = model_digest(model)
    assert before == model_digest(model)
    model.state_dict()["bn.running_mean"][0] += 1
    assert model_digest(model) != before
    other = write_python(
        tmp_path, "import nets\nclass Other(nets.Net): pass\ndef build(): return Other()\n", "other.py"
    )
    torch.manual_seed(0)
    assert model_digest(load_model(f"{other}:build")) != before


def test_the_digest_takes_any_type() -> None:
    model = nn.Linear(2, 2).half()
    model.register_buffer("flag", torch.tensor(True))
    model.register_buffer("none", torch.zeros(0))
    assert len(model_digest(model)) == 16
