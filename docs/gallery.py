"""The pictures of the gallery: each function draws one, and the gallery shows its picture and its lines.

    python docs/gallery.py [NAME ...]

Networks that must be trained for it are, on the digits that come with scikit-learn; all of it takes some minutes of one
core. The pictures lie in docs/gallery, what was trained in runs/gallery.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import skipway as sw
from skipway.errors import choose

PICTURES = Path(__file__).parent / "gallery"
RUNS = Path("runs/gallery")


def digits(n: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    """Test digits, as networks are trained on them."""
    data = sw.study.load_images("digits")
    mean, deviation = data.statistics
    return (data.test_images[:n] - mean) / deviation, data.test_labels[:n]


def trained(model: str, skip: str | None = None, epochs: int = 6, **options: Any) -> torch.nn.Module:
    """A network trained on digits, or read where it was trained before."""
    folder = RUNS / f"{model}-{skip}"
    return sw.study.train(model, skip=skip, options=options, epochs=epochs, folder=folder, quiet=True).network("last")


def resnet20() -> Any:
    """A ResNet-20 as it is traced: blocks that repeat are drawn once.

    Architectures: ResNet-20
    """
    net = sw.models.create("resnet20", num_classes=10)
    return sw.trace(net, torch.zeros(1, 3, 32, 32)).draw()


def unet() -> Any:
    """A U-Net whose long skips differ by level: concatenation, an attention gate, addition.

    Architectures: U-Net
    """
    net = sw.models.create("unet", skip=["concat", "attention-gate", "residual"], levels=3, width=16)
    return sw.trace(net.eval(), torch.zeros(1, 3, 64, 64)).draw()


def gpt() -> Any:
    """A GPT: attention and feed-forward branches on one stream.

    Architectures: GPT
    """
    net = sw.models.create("gpt-nano", vocabulary=65, length=32)
    return sw.trace(net.eval(), torch.zeros(1, 32, dtype=torch.long)).draw()


def densenet() -> Any:
    """A DenseNet: every layer reads all that came before it.

    Architectures: DenseNet
    """
    net = sw.models.create("densenet-bc-40-12", num_classes=10)
    return sw.trace(net.eval(), torch.zeros(1, 3, 32, 32)).draw()


def edited() -> Any:
    """The same ResNet-20 with three of its skips exchanged for highway gates.

    Architectures: An edited ResNet
    """
    net = sw.models.create("resnet20", num_classes=10).eval()
    skips = sw.trace(net, torch.zeros(1, 3, 32, 32)).skips
    gated = sw.edit.swap(net, skips[3:6], "highway")
    return sw.trace(gated, torch.zeros(1, 3, 32, 32)).draw()


def gradients() -> Any:
    """Gradient norms by layer before training, of 56 layers with skips and without.

    Gradients: Gradients by layer
    """
    found = []
    for skip in ("none", "residual"):
        torch.manual_seed(0)
        net = sw.models.create("resnet56", skip=skip, num_classes=10, in_channels=1, width=8)
        found.append(sw.probe.gradients(net, digits(), "cross_entropy"))
    return sw.probe.compare_gradients(found, ["plain 56", "residual 56"]).plot()


def shattering() -> Any:
    """How alike the gradients at neighbouring inputs are: white noise without skips, brown noise with them.

    Gradients: Shattered gradients
    """
    found = []
    for skip in ("none", "residual"):
        torch.manual_seed(0)
        net = sw.models.create("resnet56", skip=skip, num_classes=10, in_channels=1, width=8)
        found.append(sw.probe.shattering(net, digits(), points=64, projections=2, mode="train"))
    return sw.probe.compare_shattering(found, ["plain 56", "residual 56"]).plot()


def paths() -> Any:
    """The gradient of a trained network, split exactly by how many branches it came through.

    Paths and lesions: Path lengths
    """
    net = trained("resnet56", "residual", in_channels=1, width=4)
    return sw.probe.paths(net, digits(64), "cross_entropy").plot()


def lesions() -> Any:
    """What deleting each block of a trained network costs.

    Paths and lesions: Lesions
    """
    net = trained("resnet56", "residual", in_channels=1, width=4)
    return sw.probe.lesions(net, digits(), "cross_entropy", delete=(1, 2, 4, 8, 16), repeats=3).plot()


def responses() -> Any:
    """How strongly the layers of a trained network respond.

    Paths and lesions: Responses
    """
    net = trained("resnet56", "residual", in_channels=1, width=4)
    return sw.probe.responses(net, digits(), "cross_entropy").plot()


def surface() -> Any:
    """The loss around what a plain and a residual network of 32 layers learned, at the same levels.

    Loss surfaces: Plain and residual surfaces
    """
    found = []
    for skip in ("none", "residual"):
        net = trained("resnet32", skip, in_channels=1, width=4)
        found.append(sw.probe.landscape(net, digits(100), "cross_entropy", steps=25))
    return sw.probe.side_by_side(*found, titles=["plain 32", "residual 32"], kind="surface")


def curvature() -> Any:
    """The spectral density of the Hessian of a trained network.

    Loss surfaces: Spectral density
    """
    net = trained("resnet20", "residual", in_channels=1, width=4)
    return sw.probe.curvature(net, digits(100), "cross_entropy", top=3).plot()


def two_parameters() -> Any:
    """The smallest example: with a skip the saddle is still there, but no longer where weights start.

    Loss surfaces: Two parameters
    """
    return sw.probe.two_parameters(2.0).plot()


def symmetry_plane() -> Any:
    """The loss over the plane in which two units exchange their weights: the mirror line is a ridge or a valley.

    Loss surfaces: A plane of symmetry
    """
    net = trained("resnet20", "none", in_channels=1, width=4)
    return sw.probe.symmetry_plane(net, digits(100), "cross_entropy", steps=21).plot()


def reuse() -> Any:
    """Which earlier layers each layer of a trained DenseNet uses.

    Feature reuse: A DenseNet
    """
    net = trained("densenet-40-12", None, epochs=2, in_channels=1)
    return sw.probe.reuse(net, digits(4)).plot()


def pictures() -> dict[str, Callable[[], Any]]:
    """Every picture of the gallery by its name, in their order."""
    drawn = (
        resnet20, unet, gpt, densenet, edited, gradients, shattering, paths, lesions, responses, surface, curvature,
        two_parameters, symmetry_plane, reuse,
    )  # fmt: skip
    return {function.__name__: function for function in drawn}


def save(name: str, picture: Any) -> Path:
    """Keep a drawing as SVG and a plot as a small PNG."""
    PICTURES.mkdir(exist_ok=True)
    if hasattr(picture, "svg"):
        path = PICTURES / f"{name}.svg"
        path.write_text(picture.svg(), encoding="utf-8")
        return path
    path = PICTURES / f"{name}.png"
    figure = picture if hasattr(picture, "savefig") else getattr(picture, "flat", [picture])[0].figure
    figure.savefig(path, dpi=80, facecolor="white")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="all of them where none is named")
    options = parser.parse_args()
    torch.set_num_threads(1)
    import matplotlib

    matplotlib.use("Agg")
    for name in options.names or pictures():
        path = save(name, pictures()[choose("picture", name, pictures())]())
        print(path, f"{path.stat().st_size / 1024:.0f} KiB", flush=True)


if __name__ == "__main__":
    main()
