from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from skipway.errors import SkipwayError
from skipway.study import predict, train
from skipway.study.tasks.augmentation import images, masked_images
from skipway.study.tasks.masks import read_masked_images
from skipway.study.tasks.overlap import class_counts, dice, intersection_over_union, soft_dice_loss
from skipway.study.tasks.segmentation import Segmentation

SEGMENTER = "tests.study.nets:segmenter"


def _write(folder: Path, count: int = 6, classes: int = 2, size: tuple[int, int] = (24, 20)) -> Path:
    """Images whose classes can be told by brightness, in a frame of noise."""
    generator = np.random.default_rng(0)
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for number in range(count):
        coarse = generator.integers(classes, size=(size[0] // 4, size[1] // 4))
        mask = np.kron(coarse, np.ones((4, 4), dtype=np.int64))
        pixels = mask * (200 // (classes - 1)) + generator.integers(40, size=mask.shape)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / "images" / f"{number}.png")
        Image.fromarray((mask * (255 // (classes - 1))).astype(np.uint8)).save(folder / "masks" / f"{number}.png")
    return folder


@pytest.mark.parametrize(("classes", "loss"), [(2, "dice"), (3, "both")])
def test_a_network_learns_masks_from_crops(tmp_path: Path, classes: int, loss: Any):
    data = _write(tmp_path / "data", classes=classes)
    trained = train(
        SEGMENTER, data, crop=12, loss=loss, epochs=12, learning_rate=0.05, folder=tmp_path / "run", quiet=True
    )
    assert trained.best["validation_dice"] > 0.9
    assert trained.best["validation_iou"] <= trained.best["validation_dice"]
    expected = {f"validation_dice_{value * (255 // (classes - 1))}" for value in range(classes)}
    assert expected < set(trained.curves)
    assert (tmp_path / "run" / "examples.png").stat().st_size > 0


def test_what_is_measured_is_exact_over_whole_images(tmp_path: Path):
    data = _write(tmp_path / "data")
    trained = train(SEGMENTER, data, crop=12, epochs=2, held_out=2, folder=tmp_path / "run", quiet=True)
    predicted = predict(tmp_path / "run", [data / "images" / f"{n}.png" for n in (4, 5)], weights="last", out=tmp_path)
    both = seen = there = 0
    for n, one in zip((4, 5), predicted, strict=True):
        assert one.path is not None
        mask, truth = (np.asarray(Image.open(path)) == 255 for path in (one.path, data / "masks" / f"{n}.png"))
        both, seen, there = both + (mask & truth).sum(), seen + mask.sum(), there + truth.sum()
    assert trained.last["validation_dice"] == pytest.approx(2 * both / (seen + there), abs=1e-12)
    assert trained.last["validation_iou"] == pytest.approx(both / (seen + there - both), abs=1e-12)


def test_dice_and_intersection_over_union_by_hand():
    truth = torch.tensor([[0, 0, 1, 1], [1, 1, 0, 0]])
    predicted = torch.tensor([[0, 1, 1, 1], [1, 0, 0, 0]])
    counts = class_counts(predicted, truth, 3)
    assert counts.tolist() == [[3, 3, 0], [4, 4, 0], [4, 4, 0]]
    assert dice(counts)[:2].tolist() == [0.75, 0.75]
    assert intersection_over_union(counts)[:2].tolist() == pytest.approx([0.6, 0.6])
    assert dice(counts)[2].isnan()


def test_soft_dice_is_the_formula():
    p = torch.tensor([[[0.5, 1.0], [0.5, 0.0]]])
    classes = torch.tensor([[1, 0]])
    # Class 0: both 1.0, sums 1.5 and 1; class 1: both 0.5, sums 0.5 and 1.
    expected = 1 - ((2 * 1.0 + 1) / (1.5 + 1 + 1) + (2 * 0.5 + 1) / (0.5 + 1 + 1)) / 2
    assert float(soft_dice_loss(p, classes)) == pytest.approx(expected)
    binary = torch.tensor([[[0.5, 0.0]]])
    assert float(soft_dice_loss(binary, classes)) == pytest.approx(1 - (2 * 0.5 + 1) / (0.5 + 1 + 1))


def test_masks_move_with_their_images():
    smooth = F.interpolate(torch.rand(4, 1, 7, 7), (96, 96), mode="bicubic", align_corners=True)
    masks = (smooth > 0.5).float()
    exact, bent = masked_images((96, 96), elastic=0.0), masked_images((96, 96), elastic=4.0)
    for seed in range(4):
        moved, moved_masks = exact(seed, smooth, masks)
        assert torch.equal((moved > 0.5).float(), moved_masks)
        moved, moved_masks = bent(seed, smooth, masks)
        # Interpolating an image and then cutting it differs from taking the nearest mask on its edges alone.
        assert ((moved > 0.5).float() == moved_masks).float().mean() > 0.97
        assert set(moved_masks.unique().tolist()) <= {0.0, 1.0}
    assert not torch.equal(bent(0, smooth, masks)[0], smooth)


def test_augmentation_is_a_function_of_its_seed_and_touches_no_other():
    pixels = torch.rand(5, 3, 16, 12)
    state = torch.get_rng_state()
    standard = images((16, 12))
    assert torch.equal(standard(3, pixels)[0], standard(3, pixels)[0])
    assert not torch.equal(standard(3, pixels)[0], standard(4, pixels)[0])
    assert standard(3, pixels)[0].shape == pixels.shape
    bent, masks = masked_images((16, 12)), pixels[:, :1].round()
    assert all(torch.equal(*pair) for pair in zip(bent(3, pixels, masks), bent(3, pixels, masks), strict=True))
    assert torch.equal(torch.get_rng_state(), state)


def test_the_last_images_by_number_are_held_out(tmp_path: Path):
    data = _write(tmp_path / "data", count=12)
    assert read_masked_images(data, 3).held_out.names == ("9", "10", "11")
    assert read_masked_images(data, 0.25).held_out.names == ("9", "10", "11")
    assert read_masked_images(data, 3, limit=2).train.names == ("0", "1")


def test_crops_are_functions_of_their_seeds(tmp_path: Path):
    task = Segmentation(read_masked_images(_write(tmp_path / "data"), 1), crop=8)
    indices, seeds = torch.tensor([0, 3]), torch.tensor([5, 6])
    pixels, masks = task.batch(indices, seeds)
    again = task.batch(indices.flip(0), seeds.flip(0))
    assert torch.equal(pixels, again[0].flip(0))
    assert torch.equal(masks, again[1].flip(0))
    assert pixels.shape == (2, 1, 8, 8)
    assert task.count == 5 * 8  # 24 x 20 pixels take 8 crops of 8 x 8.


def test_outputs_of_deep_supervision_count_by_halves(tmp_path: Path):
    task = Segmentation(read_masked_images(_write(tmp_path / "data"), 1), crop=8, loss="cross-entropy")
    batch = task.batch(torch.tensor([0]), torch.tensor([5]))
    full, half = torch.randn(1, 1, 8, 8), torch.randn(1, 1, 4, 4)

    def network(_: Tensor) -> tuple[Tensor, Tensor]:
        return full, half

    truth = batch[1][:, None].float()
    expected = F.binary_cross_entropy_with_logits(full, truth) + 0.5 * F.binary_cross_entropy_with_logits(
        half, F.interpolate(truth, (4, 4), mode="nearest-exact")
    )
    assert float(task.loss(network, batch)) == pytest.approx(float(expected) / 1.5, rel=1e-6)


@pytest.mark.usefixtures("no_shape_checks")
def test_slips_are_one_sentence(tmp_path: Path):
    data = _write(tmp_path / "data")
    with pytest.raises(SkipwayError, match=r"7 of the 6 images .* held out"):
        read_masked_images(data, 7)
    with pytest.raises(SkipwayError, match="a crop of 21 x 21 is larger than the smallest image, 24 x 20"):
        Segmentation(read_masked_images(data), crop=21)
    with pytest.raises(SkipwayError, match=r"resnet20 is for images in classes .* such as unet"):
        train("resnet20", data, folder=tmp_path / "run", quiet=True)
    with pytest.raises(SkipwayError, match="did you mean 'dice'"):
        train(SEGMENTER, data, loss="dic", folder=tmp_path / "run", quiet=True)  # pyright: ignore[reportArgumentType]
    (data / "masks" / "3.png").unlink()
    with pytest.raises(SkipwayError, match="image '3' has no mask of its name"):
        read_masked_images(data)
    Image.new("L", (8, 8)).save(data / "masks" / "3.png")
    with pytest.raises(SkipwayError, match="image '3' is 24 x 20 and its mask 8 x 8"):
        read_masked_images(data)
    (data / "masks" / "3.png").write_text("no image")
    with pytest.raises(SkipwayError, match="cannot be read as an image"):
        read_masked_images(data)
    shades = np.arange(480, dtype=np.uint8).reshape(24, 20)
    Image.fromarray(shades).save(data / "masks" / "3.png")
    with pytest.raises(SkipwayError, match="store masks without loss"):
        read_masked_images(data)
