"""The data from what a user types, and what is said when it cannot be read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from small_data import write_cifar10, write_images, write_npz, write_python

from automc.errors import AutomcError, InputError, MissingError, UnknownNameError
from automc.evaluate.arrays import IMAGENET_MEAN, IMAGENET_STD, crop_and_flip
from automc.evaluate.data import SPLITS, Data, TensorSplit
from automc.evaluate.loading import as_data, load_data
from automc.evaluate.score import load_score

LOADERS = """
import torch
def batches(count=2, start=0.0):
    return [(torch.full((4, 3), start + i), torch.arange(4)) for i in range(count)]
def loaders(): return batches(3), batches(), batches(), batches(1)
def named(): return {"calibration": batches(), "validation": batches(1), "test": batches(2)}
def pair(batch_size, seed): return batches(batch_size), batches(seed + 1)
def nothing(): return None
def three(): return batches(), batches(), batches()
def strange(): return {"val": batches()}
def lacking(): return None, batches(), None, None
def once(): return iter(batches()), batches()
def number(): return 3, batches()
def broken(): raise RuntimeError("no such disk")
def needs(path): return path
"""


def sizes(data: Data) -> dict[str, int]:
    """Samples of each split, counted by reading it."""
    return {name: sum(len(batch[0]) for batch in split) for name, split in data.splits.items()}


def test_the_default_is_the_demo() -> None:
    assert load_data(None, 50).digest == load_data("digits", 50).digest
    assert sizes(load_data(None, 50)) == {"train": 900, "calibration": 197, "validation": 300, "test": 400}


# npz


def test_npz_bytes_are_normalised_per_channel_and_divided(tmp_path: Path) -> None:
    data = load_data(write_npz(tmp_path / "a.npz"), 16)
    assert sizes(data) == {"train": 40, "calibration": 8, "validation": 16, "test": 16}
    x, y = next(iter(data.validation))
    assert x.shape == (16, 3, 8, 8)
    assert y.dtype == torch.int64
    raw = np.load(tmp_path / "a.npz")["x"]
    assert isinstance(data.validation, TensorSplit)
    expected = raw[int(data.validation.index[0])].transpose(2, 0, 1) / 255
    expected = (expected - np.reshape(IMAGENET_MEAN, (3, 1, 1))) / np.reshape(IMAGENET_STD, (3, 1, 1))
    assert np.allclose(x[0], expected, atol=1e-5)
    assert "drawn at random" in data.notes[0]


def test_npz_takes_other_constants(tmp_path: Path) -> None:
    spec = write_npz(tmp_path / "a.npz")
    own = next(iter(load_data(f"{spec}?mean=0.5,0.4,0.3&std=0.5,0.5,0.5", 16).validation))[0]
    default = next(iter(load_data(spec, 16).validation))[0]
    pixels = default * torch.tensor(IMAGENET_STD).view(3, 1, 1) + torch.tensor(IMAGENET_MEAN).view(3, 1, 1)
    assert torch.allclose(own, (pixels - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / 0.5, atol=1e-5)


def test_npz_of_one_channel_is_scaled_to_one(tmp_path: Path) -> None:
    x = np.full((40, 8, 8, 1), 255, np.uint8)
    data = load_data(write_npz(tmp_path / "a.npz", 40, x=x), 8)
    assert torch.equal(next(iter(data.validation))[0], torch.ones(8, 1, 8, 8))


def test_npz_floats_are_taken_as_they_are(tmp_path: Path) -> None:
    x = np.random.RandomState(0).randn(40, 1, 5, 7)
    data = load_data(write_npz(tmp_path / "a.npz", 40, x=x), 8)
    assert isinstance(data.test, TensorSplit)
    assert torch.equal(next(iter(data.test))[0], torch.from_numpy(x[data.test.index[:8]]).float())


@pytest.mark.parametrize("numbers", [False, True])
def test_npz_splits_can_be_named(tmp_path: Path, numbers: bool) -> None:
    number = np.repeat([0, 1, 2, 3], [40, 10, 20, 10])
    split = number if numbers else np.array(SPLITS)[number]
    data = load_data(write_npz(tmp_path / "a.npz", split=split), 16)
    assert sizes(data) == {"train": 40, "calibration": 10, "validation": 20, "test": 10}
    assert data.notes == ()


def test_npz_labels_may_be_true_and_false(tmp_path: Path) -> None:
    given, numbers = (
        load_data(write_npz(tmp_path / "a.npz", y=y), 16)
        for y in (np.arange(80) % 4 == 0, (np.arange(80) % 4 == 0) * 1)
    )
    for (_, y), (_, expected) in zip(given.validation, numbers.validation, strict=True):
        assert y.dtype == torch.int64
        assert torch.equal(y, expected)


def test_npz_targets_may_be_numbers_for_another_score(tmp_path: Path) -> None:
    data = load_data(write_npz(tmp_path / "a.npz", y=np.linspace(0, 1, 80)), 16)
    assert next(iter(data.validation))[1].dtype == torch.float32


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"y": None}, "no array called 'y'"),
        ({"x": None}, "no array called 'x'"),
        ({"y": np.arange(79)}, r"80 samples \(x\) and 79 targets"),
        ({"x": np.zeros((0, 8, 8, 3), np.uint8), "y": np.zeros(0, int)}, r"0 samples \(x\)"),
        ({"x": np.zeros((80, 8, 8), np.uint8)}, r"uint8 of shape \(80, 8, 8\).*uint8 \(n, h, w, c\) or float"),
        ({"x": np.zeros((80, 3, 8, 8), np.int32)}, "x in .* is int32"),
        ({"x": np.array([{}] * 80)}, "not an npz file of plain arrays"),
        ({"split": np.zeros(3, int)}, "split in .* has shape"),
        ({"split": np.full(80, 4)}, "4 in .* is not a split"),
        ({"split": np.array(["train"] * 79 + ["val"])}, "'val' in .* is not a split"),
        ({"split": np.array(["calibration"] * 80)}, "validation split is empty"),
    ],
)
def test_an_npz_that_does_not_fit_says_why(tmp_path: Path, arrays: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_data(write_npz(tmp_path / "a.npz", **arrays), 16)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("mean=a,b,c", "mean=a,b,c is not numbers"),
        ("std=1,2", "std has 2 numbers for 3 channels"),
        ("std=0", "divides by nothing"),
        ("scale=2", "'scale' is not an option"),
        ("mean", "not name=value"),
    ],
)
def test_an_option_that_does_not_fit_says_why(tmp_path: Path, query: str, message: str) -> None:
    spec = write_npz(tmp_path / "a.npz")
    with pytest.raises(InputError, match=message):
        load_data(f"{spec}?{query}", 16)


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 torn", b"text"])
def test_a_file_that_is_not_npz_says_so(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "a.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match="There is no file" if content is None else "not an npz file"):
        load_data(f"npz:{path}", 16)


# cifar10


def test_cifar10_reads_the_batches_that_are_there(tmp_path: Path) -> None:
    data = load_data(write_cifar10(tmp_path / "c"), 16)
    assert sizes(data) == {"train": 77, "calibration": 19, "validation": 24, "test": 30}
    x, y = next(iter(data.test or ()))
    assert x.shape == (16, 3, 32, 32)
    pixel = x[:, :, 0, 0] * torch.tensor(IMAGENET_STD) + torch.tensor(IMAGENET_MEAN)
    numbers = (pixel * 255).round().long()
    assert (numbers >= 120).all()
    assert torch.equal(numbers[:, 0] % 10, y)
    assert data.augment is crop_and_flip
    assert load_data(f"cifar10:{tmp_path / 'c'}?augment=none", 16).augment is None
    with pytest.raises(InputError, match="no augmentation called 'mixup'"):
        load_data(f"cifar10:{tmp_path / 'c'}?augment=mixup", 16)
    assert any("train samples" in note for note in data.notes)


def test_cifar10_without_training_batches_divides_the_test_batch(tmp_path: Path) -> None:
    assert sizes(load_data(write_cifar10(tmp_path / "c", batches=()), 16)) == {
        "train": 15, "calibration": 3, "validation": 6, "test": 6,
    }  # fmt: skip


def test_cifar10_that_is_not_there_or_torn_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no folder"):
        load_data(f"cifar10:{tmp_path / 'nowhere'}", 16)
    with pytest.raises(InputError, match=r"holds no data_batch"):
        load_data(f"cifar10:{tmp_path}", 16)
    (tmp_path / "test_batch.bin").write_bytes(bytes(3000))
    with pytest.raises(InputError, match="is not a CIFAR-10 batch"):
        load_data(f"cifar10:{tmp_path}", 16)


def test_crops_keep_size_and_differ() -> None:
    torch.manual_seed(0)
    images = torch.randn(8, 3, 12, 16)
    changed = crop_and_flip(images)
    assert changed.shape == images.shape
    assert not torch.equal(changed, images)
    ramp = torch.arange(16.0).expand(64, 1, 12, 16) + 100
    rows = crop_and_flip(ramp)[:, 0, 6]
    steps = rows.diff(dim=1)[(rows[:, 1:] > 0) & (rows[:, :-1] > 0)]
    assert set(steps.tolist()) == {1.0, -1.0}


# image folders


def test_an_image_folder_is_cut_and_normalised_like_imagenet(tmp_path: Path) -> None:
    data = load_data(write_images(tmp_path / "i"), 4)
    assert data.augment is None
    assert load_data(f"imagefolder:{tmp_path / 'i'}?augment=crop_flip", 4).augment is crop_and_flip
    with pytest.raises(InputError, match="'mean' is not an option"):
        load_data(f"imagefolder:{tmp_path / 'i'}?mean=0", 4)
    assert sizes(data) == {"train": 10, "calibration": 2, "validation": 4, "test": 4}
    x, y = next(iter(data.validation))
    assert x.shape == (4, 3, 224, 224)
    assert sorted(y.tolist()) == [0, 0, 1, 1]
    grey = (100 / 255 - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
    assert torch.allclose(x[y == 1][0], grey.view(3, 1, 1).expand(3, 224, 224), atol=1e-5)


def test_an_image_folder_may_name_its_splits(tmp_path: Path) -> None:
    write_images(tmp_path / "i" / "train", count=10)
    data = load_data(write_images(tmp_path / "i" / "val", count=4).replace("/val", ""), 4)
    assert sizes(data) == {"train": 16, "calibration": 4, "validation": 4, "test": 4}
    assert "half of the validation" in data.notes[0]


def test_the_cut_is_torchvisions(tmp_path: Path, torchvision: object) -> None:
    from PIL import Image
    from torchvision import transforms

    from automc.evaluate.folders import read_image

    noise = np.random.RandomState(0).randint(0, 255, (311, 402, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    steps = [transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor()]
    theirs = transforms.Compose([*steps, transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)])
    assert torch.allclose(read_image(tmp_path / "noise.png"), theirs(Image.open(tmp_path / "noise.png")), atol=1e-5)


def test_bad_image_folders_say_why(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no folder"):
        load_data(f"imagefolder:{tmp_path / 'nowhere'}", 4)
    with pytest.raises(InputError, match="holds no images"):
        load_data(f"imagefolder:{tmp_path}", 4)
    write_images(tmp_path / "i" / "train", ("cat", "dog", "eel"))
    write_images(tmp_path / "i" / "val", ("cat", "fox"))
    with pytest.raises(InputError, match="'fox' of validation is missing elsewhere"):
        load_data(f"imagefolder:{tmp_path / 'i'}", 4)


def test_an_image_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    data = load_data(write_images(tmp_path / "i"), 50)
    for path in (tmp_path / "i").rglob("*.png"):
        path.write_bytes(b"text")
    with pytest.raises(InputError, match=r"\.png cannot be read as an image"):
        next(iter(data.validation))


# functions


def test_loaders_come_from_a_function(tmp_path: Path) -> None:
    path = write_python(tmp_path, LOADERS)
    assert sizes(load_data(f"{path}:loaders", 2)) == {"train": 12, "calibration": 8, "validation": 8, "test": 4}
    named = load_data(f"{path}:named", 2)
    assert sizes(named) == {"calibration": 8, "validation": 4, "test": 8}
    assert named.notes == ()


def test_a_function_is_given_what_it_asks_for_and_may_leave_out_a_test(tmp_path: Path) -> None:
    data = load_data(f"{write_python(tmp_path, LOADERS)}:pair", 5, seed=2)
    assert sizes(data) == {"calibration": 20, "validation": 12}
    assert "no test split" in data.notes[0]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("nothing", "mine.py:nothing is NoneType, not loaders"),
        ("three", "is tuple of 3, not loaders"),
        ("strange", r"is keys \['val'\]"),
        ("lacking", "gives no validation loader"),
        ("once", "calibration loader .* cannot be read more than once"),
        ("number", "calibration loader .* is of type int"),
        ("broken", "raised RuntimeError: no such disk"),
        ("needs", "raised TypeError"),
        ("loader", "has no function 'loader'. Did you mean 'loaders'?"),
    ],
)
def test_a_function_that_does_not_give_loaders_says_why(tmp_path: Path, function: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_data(f"{write_python(tmp_path, LOADERS)}:{function}", 2)


@pytest.mark.parametrize(
    ("spec", "closest"),
    [("digit", "digits"), ("cifra10:DIR", "cifar10:DIR"), ("npx:FILE", "npz:FILE"), ("digits:8", "digits"), ("", None)],
)
def test_an_unknown_kind_names_the_closest(spec: str, closest: str | None) -> None:
    with pytest.raises(UnknownNameError) as caught:
        load_data(spec or "::", 2)
    assert caught.value.closest == closest


def test_a_batch_size_below_one_is_refused() -> None:
    with pytest.raises(InputError, match="batch size of 0"):
        load_data(None, 0)


def test_python_users_pass_what_they_have() -> None:
    batches = [(torch.zeros(2, 3), torch.zeros(2).long())]
    data = as_data((None, batches, batches, None), 2)
    assert data.train is None
    assert as_data(data, 2) is data
    assert as_data("digits", 2).name == "digits"
    with pytest.raises(InputError, match=r"Return \(train"):
        as_data(3, 2)


# files of functions


def test_a_file_may_import_its_neighbours(tmp_path: Path) -> None:
    write_python(tmp_path, "VALUE = 7\n", "neighbour_of_mine.py")
    path = write_python(tmp_path, "from neighbour_of_mine import VALUE\ndef score(model, loader): return VALUE\n")
    assert load_score(f"{path}:score")(len, []) == 7


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (None, InputError, "There is no file"),
        ("def score(:", InputError, "raised SyntaxError when imported"),
        ("1 / 0", InputError, "raised ZeroDivisionError when imported"),
        ("import not_on_this_machine", MissingError, "imports 'not_on_this_machine'"),
        ("score = 3", InputError, "is of type int, not a function"),
    ],
)
def test_a_file_that_does_not_work_says_why(
    tmp_path: Path, text: str | None, error: type[AutomcError], message: str
) -> None:
    path = str(tmp_path / "nowhere.py") if text is None else write_python(tmp_path, text)
    with pytest.raises(error, match=message):
        load_score(f"{path}:score")
