from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from skipway.errors import SkipwayError
from skipway.study import load_images
from skipway.study.tasks.images import check_source


def _write(folder: Path, count: int, colour: bool = False, size: tuple[int, int] = (6, 6), start: int = 0) -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        value = start + number
        pixels = np.full((*size, 3) if colour else size, value, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03}.png")


def test_digits_are_all_there_once_and_split_by_class():
    images = load_images("digits")
    whole = torch.cat((images.train_images, images.test_images)).flatten(1)
    digits: Any = load_digits()
    original = torch.from_numpy(digits.images).to(torch.uint8).flatten(1)
    assert sorted(whole.tolist()) == sorted(original.tolist())
    shares = torch.bincount(images.test_labels) / (
        torch.bincount(images.test_labels) + torch.bincount(images.train_labels)
    )
    assert shares.sub(0.2).abs().max() < 0.01


def test_loading_again_gives_the_same_data_and_leaves_the_random_state():
    before = torch.random.get_rng_state()
    first, second = load_images("digits", samples=50), load_images("digits", samples=50)
    assert first.fingerprint == second.fingerprint
    assert first.fingerprint != load_images("digits", samples=51).fingerprint
    assert torch.equal(torch.random.get_rng_state(), before)


def test_statistics_normalise_the_training_set():
    images = load_images("digits")
    mean, deviation = images.statistics
    normalised = (images.train_images.double() - mean) / deviation
    assert normalised.mean().item() == pytest.approx(0, abs=1e-6)
    assert normalised.std(correction=0).item() == pytest.approx(1, abs=1e-6)


def test_a_channel_without_contrast_is_only_centred(tmp_path: Path):
    _write(tmp_path / "data" / "a", 5, start=7)
    _write(tmp_path / "data" / "b", 5, start=7)
    for path in (tmp_path / "data").rglob("*.png"):
        Image.fromarray(np.full((4, 4), 9, dtype=np.uint8)).save(path)
    _, deviation = load_images(tmp_path / "data").statistics
    assert deviation.flatten().tolist() == [1.0]


def test_image_folder_with_a_test_part(tmp_path: Path):
    _write(tmp_path / "train" / "cat", 3)
    _write(tmp_path / "train" / "dog", 4, start=100)
    _write(tmp_path / "test" / "dog", 2, start=200)
    images = load_images(tmp_path)
    assert images.classes == ("cat", "dog")
    assert images.train_labels.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert images.test_labels.tolist() == [1, 1]
    assert images.test_images[:, 0, 0, 0].tolist() == [200, 201]


def test_a_single_tree_is_split_with_every_class_in_both_parts(tmp_path: Path):
    _write(tmp_path / "cat", 10)
    _write(tmp_path / "dog", 10, start=100)
    images = load_images(tmp_path)
    assert len(images.train_labels) == 16
    assert sorted(images.test_labels.tolist()) == [0, 0, 1, 1]
    assert sorted(torch.cat((images.train_images, images.test_images))[:, 0, 0, 0].tolist()) == [
        *range(10),
        *range(100, 110),
    ]


def test_one_coloured_image_makes_the_set_coloured(tmp_path: Path):
    _write(tmp_path / "train" / "a", 2, start=30)
    _write(tmp_path / "train" / "b", 2, colour=True, start=60)
    _write(tmp_path / "test" / "a", 1)
    images = load_images(tmp_path)
    assert images.train_images.shape == (4, 3, 6, 6)
    assert images.train_images[:, :, 0, 0].tolist() == [[30] * 3, [31] * 3, [60] * 3, [61] * 3]


def test_images_of_several_sizes_are_brought_to_one(tmp_path: Path):
    _write(tmp_path / "a", 5)
    _write(tmp_path / "b", 5, size=(8, 12))
    with pytest.raises(SkipwayError, match=r"6 x 6 and 8 x 12; image_size=6 \(--image-size\)"):
        load_images(tmp_path)
    assert load_images(tmp_path, image_size=5).train_images.shape[1:] == (1, 5, 5)


def test_parquet_in_the_hugging_face_layout(shared_data: Path):
    images = load_images(shared_data / "cifar10", samples=200)
    assert images.train_images.shape == images.test_images.shape == (200, 3, 32, 32)
    assert images.classes[:2] == ("airplane", "automobile")
    # The published channel means of CIFAR-10 are 0.4914, 0.4822, 0.4465; 200 images come near.
    mean, _ = images.statistics
    assert (mean.flatten() / 255 - torch.tensor([0.4914, 0.4822, 0.4465])).abs().max() < 0.03
    assert torch.bincount(images.train_labels, minlength=10).min() > 5


def test_parquet_without_feature_types(tmp_path: Path):
    import pandas

    _write(tmp_path / "png" / "a", 6)
    encoded = [{"bytes": path.read_bytes(), "path": None} for path in sorted((tmp_path / "png" / "a").iterdir())]
    rows = pandas.DataFrame({"image": encoded, "label": [0, 1, 0, 1, 0, 1]})
    rows.to_parquet(tmp_path / "train.parquet")
    rows[:2].to_parquet(tmp_path / "test.parquet")
    images = load_images(tmp_path)
    assert images.train_images[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert images.test_labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("digit", "no data set 'digit'; did you mean 'digits'"),
        ("cifar10", "a Hugging Face name such as"),
        ("./nowhere", "no data folder './nowhere'"),
        ("a/b/c", "no data folder 'a/b/c'"),
    ],
)
def test_sources_that_cannot_be(source: str, sentence: str):
    with pytest.raises(SkipwayError, match=sentence):
        check_source(source)


def test_a_hub_that_cannot_be_reached_is_one_sentence():
    with pytest.raises(SkipwayError, match="there is no folder 'nobody/nothing', and the Hugging Face Hub gave no"):
        load_images("nobody/nothing")


def test_folders_that_hold_no_data_set(tmp_path: Path):
    with pytest.raises(SkipwayError, match="holds no folders of images"):
        load_images(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(SkipwayError, match="is a file; a data set is a parquet file, or a folder"):
        load_images(tmp_path / "file")
    _write(tmp_path / "lonely", 4)
    with pytest.raises(SkipwayError, match="has 1 class; telling classes apart needs 2"):
        load_images(tmp_path)
    _write(tmp_path / "rare", 1)
    with pytest.raises(SkipwayError, match="class 'rare' has fewer than 2 images"):
        load_images(tmp_path)
    (tmp_path / "rare" / "x.png").write_text("no image")
    with pytest.raises(SkipwayError, match=r"x\.png' cannot be read as an image"):
        load_images(tmp_path)
    (tmp_path / "validation.parquet").write_text("")
    with pytest.raises(SkipwayError, match=r"holds 'validation\.parquet' but no train\*\.parquet"):
        load_images(tmp_path)
    (tmp_path / "train.parquet").write_text("no parquet")
    with pytest.raises(SkipwayError, match="cannot read the parquet files of"):
        load_images(tmp_path)


def test_parquet_without_images_or_with_hidden_labels(tmp_path: Path):
    import pandas

    pandas.DataFrame({"text": ["a"], "label": [0]}).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(SkipwayError, match=r"has no image column \(img, image\); its columns are text, label"):
        load_images(tmp_path)
    _write(tmp_path / "png" / "a", 2)
    encoded = [{"bytes": path.read_bytes(), "path": None} for path in sorted((tmp_path / "png" / "a").iterdir())]
    pandas.DataFrame({"image": encoded, "label": [0, 1]}).to_parquet(tmp_path / "train.parquet")
    pandas.DataFrame({"image": encoded, "label": [-1, -1]}).to_parquet(tmp_path / "test.parquet")
    with pytest.raises(SkipwayError, match="the test set has the label -1"):
        load_images(tmp_path)


def test_a_test_class_that_training_lacks(tmp_path: Path):
    _write(tmp_path / "train" / "a", 2)
    _write(tmp_path / "train" / "b", 2)
    _write(tmp_path / "test" / "c", 2)
    with pytest.raises(SkipwayError, match="a class 'c' that the training set has not"):
        load_images(tmp_path)


def test_digits_have_their_size():
    with pytest.raises(SkipwayError, match="digits are 8 x 8"):
        load_images("digits", image_size=16)
