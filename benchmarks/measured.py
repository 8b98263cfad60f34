"""The classic findings about skips, measured on trained CIFAR-10 networks with and without them, on real images.

    python benchmarks/measured.py DATA [--out runs/measured]

DATA is a folder with `cifar10/{train,test}-00000-of-00001.parquet` (Hugging Face's layout) and in `weights` the files
a-martyn-{plainnet,resnet}{20,56}.pt of https://github.com/a-martyn/resnet: twins of equal parameters, with skips and
without. Results are kept in --out as they are measured, and the same command goes on where it was stopped. It writes
benchmarks/results/measured.json, the pictures of docs/measured, and in --out one page with all of it.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from torch import Tensor, nn

import measure
import skipway as sw
from skipway import probe
from skipway.probe import Curvature, Gradients, Landscape, Lesions, PathGradients, Responses, Result
from skipway.report.probes import Measured, probes_page

NETS = {"plain-20": ("plainnet", 20), "plain-56": ("plainnet", 56), "ResNet-20": ("resnet", 20),
        "ResNet-56": ("resnet", 56)}  # fmt: skip
MEAN, DEVIATION = (0.49187, 0.49186, 0.49186), (0.24697, 0.24697, 0.24697)
PICTURES = Path(__file__).parents[1] / "docs" / "measured"
BATCH = 125
LEVELS = (0.01, 0.03, 0.1, 0.2, 0.5, 1, 1.5, 2, 2.5, 3, 4, 5, 7, 10, 15, 20, 30, 50, 100, 200)


def images(data: Path, part: str, count: int) -> list[tuple[Tensor, Tensor]]:
    """The first images of a part of CIFAR-10 and their classes, normalised as the networks' trainer did."""
    import pandas
    from PIL import Image

    rows = pandas.read_parquet(data / "cifar10" / f"{part}-00000-of-00001.parquet").iloc[:count]
    pixels = np.stack([np.array(Image.open(io.BytesIO(row["bytes"]))) for row in rows["img"]])
    mean, deviation = (torch.tensor(part).view(3, 1, 1) for part in (MEAN, DEVIATION))
    x = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / deviation
    return list(zip(x.split(BATCH), torch.tensor(rows["label"].to_numpy()).split(BATCH), strict=True))


def network(data: Path | None, label: str) -> nn.Module:
    """A trained network, or where there is no data the same before training."""
    kind, depth = NETS[label]
    skip = "none" if kind == "plainnet" else sw.Residual(shortcut=sw.ZeroPad(channels="append"))
    if data is None:
        torch.manual_seed(0)
        return sw.models.create(f"resnet{depth}", skip=skip, num_classes=10)
    weights = data / "weights" / f"a-martyn-{kind}{depth}.pt"
    return sw.models.create(f"resnet{depth}", skip=skip, weights=weights, num_classes=10).eval()


class Kept:
    """Results in a folder: what lies there is not measured again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def result(self, name: str, label: str, run: Callable[[], Result]) -> Any:
        path = self.folder / "numbers" / f"{name}-{label}.npz"
        if not path.exists():
            print(f"{name} of {label}", flush=True)
            run().save(path)
        return probe.load(path)


def gradient_flow(kept: Kept, train: list[Any]) -> dict[str, Any]:
    """Does the gradient vanish in plain networks? Before training, as in the first step."""
    found: dict[str, Gradients] = {}
    for label in NETS:
        net = network(None, label)
        found[label] = kept.result(
            "gradients-at-start", label, lambda net=net: probe.gradients(net, train[:1], "cross_entropy")
        )
    joint = probe.compare_gradients(list(found.values()), list(found))
    picture(joint.plot(), "gradients")
    numbers = {}
    for label, one in found.items():
        layers = one.layers >= 0
        norms = one.norms[layers][np.argsort(one.layers[layers])]
        numbers[label] = {
            "first_layer": norms[0], "last_layer": norms[-1], "largest_over_smallest": norms.max() / norms.min(),
            "shortcut_over_branch_median": np.median(one.through_shortcut / one.through_branch)
            if one.skips else None,
        }  # fmt: skip
    return numbers


def layer_responses(kept: Kept, data: Path, test: list[Any]) -> dict[str, Any]:
    """He et al. 2015, figure 7: residual branches respond less than plain layers, and less the deeper."""
    found: dict[str, Responses] = {}
    for label in NETS:
        net = network(data, label)
        found[label] = kept.result("responses", label, lambda net=net: probe.responses(net, test))
    picture(probe.compare_responses(list(found.values()), list(found)).plot(), "responses")
    picture(found["ResNet-56"].plot_stream(), "stream")
    return {
        label: {
            "std_median": np.median(one.layer_std[1:-1]), "std_mean": np.mean(one.layer_std[1:-1]),
            "branch_over_shortcut_median": np.median(one.ratios) if one.skips else None,
            "cosine_median": np.median(one.cosines) if one.skips else None,
        }
        for label, one in found.items()
    }  # fmt: skip


def deletions(kept: Kept, data: Path, test: list[Any]) -> dict[str, Any]:
    """Veit et al. 2016, figures 3 and 5."""
    found: dict[str, Lesions] = {}
    for label, (kind, depth) in NETS.items():
        net = network(data, label)
        options: dict[str, Any] = {}
        if kind == "resnet":
            options = {"delete": (2, 3, 5, 8) if depth == 20 else (2, 4, 8, 12, 20), "reorder": (1, 2, 4, 8, 16)}
        found[label] = kept.result(
            "lesions", label,
            lambda net=net, options=options, label=label: probe.lesions(
                net, test, "cross_entropy", folder=kept.folder / "points" / f"lesions-{label}", **options
            ),
        )  # fmt: skip
    draw_lesions(found)
    numbers = {}
    for label, one in found.items():
        added = 100 * (one.errors - one.base_error)
        numbers[label] = {
            "error_percent": 100 * one.base_error, "deleted": one.of,
            "median_error_percent": 100 * np.median(one.errors), "least": 100 * one.errors.min(),
            "most": 100 * one.errors.max(), "cost_under_4_points": int((added < 4).sum()), "of": len(added),
        }  # fmt: skip
        if one.of == "skips":
            numbers[label] |= {
                "median_added_same_shape": np.median(added[~one.resized]),
                "median_added_changing_shape": np.median(added[one.resized]),
                "several": {int(k): 100 * one.deleted_errors[one.deleted == k].mean() for k in np.unique(one.deleted)},
                "correlation_of_error_and_kendall_tau": np.corrcoef(one.taus, one.reordered_errors)[0, 1],
            }
    return numbers


def draw_lesions(found: dict[str, Lesions]) -> None:
    import matplotlib.pyplot as plt

    _, (one, several, order) = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    for number, (label, result) in enumerate(found.items()):
        places = np.linspace(0, 1, len(result.parts))
        style = "--" if result.of == "layers" else "-"
        one.plot(places, 100 * result.errors, style, marker=".", color=f"C{number}", label=label)
        one.plot(places[result.resized], 100 * result.errors[result.resized], "o", color=f"C{number}", mfc="none")
        if result.of == "skips":
            counts = np.unique(result.deleted)
            means = [100 * result.deleted_errors[result.deleted == count].mean() for count in counts]
            several.plot(result.deleted, 100 * result.deleted_errors, ".", color=f"C{number}", alpha=0.4)
            several.plot(counts, means, color=f"C{number}", label=label)
            order.plot(result.taus, 100 * result.reordered_errors, ".", color=f"C{number}", label=label)
    one.axhline(90, color="0.6", linewidth=0.8)
    one.set(xlabel="depth of what is deleted (circle: changes the shape)", ylabel="test error, %", title="one deleted")
    several.set(xlabel="branches deleted at random", title="several deleted")
    order.invert_xaxis()
    order.set(xlabel="Kendall tau with the original order", title="blocks exchanged")
    for panel in (one, several, order):
        panel.set_ylim(0, 120)
        panel.legend(frameon=False, fontsize=8, loc="upper center", ncols=2)
    picture(one, "lesions")


def path_lengths(kept: Kept, data: Path, train: list[Any]) -> dict[str, Any]:
    """Veit et al. 2016, figure 6, and what it cannot see: paths of one length cancel one another."""
    numbers = {}
    for label in ("ResNet-20", "ResNet-56"):
        net = network(data, label)
        one: PathGradients = kept.result(
            "paths", label, lambda net=net: probe.paths(net, train[:1], "cross_entropy", draws=8, samples=64)
        )
        if label == "ResNet-56":
            picture(one.plot(), "paths")
        single = one.drawn.mean(0)
        decay = np.exp(np.polyfit(one.lengths[:11], np.log(single[:11]), 1)[0])
        drawn = one.drawn.mean(0) * one.frequency
        low, high = one.effective()
        numbers[label] = {
            "skips": int(one.lengths[-1]), "decay_a_branch": decay,
            "mean_length_by_count": (one.frequency * one.lengths).sum(),
            "mean_length_drawn": (drawn * one.lengths).sum() / drawn.sum(), "mean_length_exact": one.mean_length,
            "95_percent_of_the_gradient": [low, high],
            "share_of_the_paths_there": one.frequency[(one.lengths >= low) & (one.lengths <= high)].sum(),
            "coherence_by_length": one.coherence_by_length.tolist(), "residual_of_the_sum": one.residual,
        }  # fmt: skip
    return numbers


def surfaces(kept: Kept, data: Path, train: list[Any], steps: int, seeds: int) -> dict[str, Any]:
    """Li et al. 2018, figure 1: frozen statistics, filter-normalised directions, several draws of them."""
    found: dict[str, list[Landscape]] = {}
    for label in NETS:
        net = network(data, label)
        found[label] = [
            kept.result(
                f"landscape-{seed}", label,
                lambda net=net, seed=seed, label=label: probe.landscape(
                    net, train[:1], "cross_entropy", steps=steps, seed=seed,
                    folder=kept.folder / "points" / f"landscape-{seed}-{label}",
                ),
            )
            for seed in range(seeds)
        ]  # fmt: skip
    first = [each[0] for each in found.values()]
    picture(probe.side_by_side(*first, titles=list(found), log=True, levels=LEVELS), "contours")
    pair = [found["plain-56"][0], found["ResNet-56"][0]]
    picture(probe.side_by_side(*pair, titles=["plain-56", "ResNet-56"], kind="surface"), "surfaces")
    return {
        label: {
            "loss_at_the_centre": each[0].loss[steps // 2, steps // 2],
            "error_percent_at_the_centre": 100 * each[0].error[steps // 2, steps // 2],
            "roughness": [one.roughness for one in each],
            "bends_down": [one.negative_curvature for one in each],
            "least_loss": [one.loss.min() for one in each],
            "median_loss": [np.median(one.loss) for one in each],
            "share_of_the_plane_below_loss_1": [np.mean(one.loss < 1) for one in each],
        }
        for label, each in found.items()
    }  # fmt: skip


def curvatures(kept: Kept, data: Path, train: list[Any]) -> dict[str, Any]:
    """Li et al. 2018, figure 7, at the weights themselves: how far from convex."""
    import matplotlib.pyplot as plt

    found: dict[str, Curvature] = {}
    options: dict[str, Any] = {"top": 3, "steps": 16, "samples": 64, "measure": ("eigenvalues", "density")}
    for label in NETS:
        net = network(data, label)
        found[label] = kept.result(
            "curvature", label, lambda net=net: probe.curvature(net, train[:1], "cross_entropy", **options)
        )
    _, axes = plt.subplots(figsize=(7.5, 4.5), layout="constrained")
    for label, one in found.items():
        at, density = one.density()
        axes.semilogy(at, density + 1e-9, "--" if "plain" in label else "-", label=label, linewidth=1)
    axes.set(xlabel="eigenvalue of the Hessian of the training loss", ylabel="spectral density")
    axes.set_xscale("symlog", linthresh=10)
    axes.legend(frameon=False)
    picture(axes, "curvature")
    return {
        label: {
            "top": one.top[0].tolist(), "bottom": one.bottom[0].tolist(), "residuals": one.top_residuals[0].tolist(),
            "bottom_residual": one.bottom_residuals[0].tolist(),
            "bottom_over_top": abs(one.bottom[0, 0] / one.top[0, 0]),
            "converged": bool(one.top_converged.all() and one.bottom_converged.all()),
            "products": int(one.products[0]),
        }
        for label, one in found.items()
    }  # fmt: skip


def picture(axes: Any, name: str) -> None:
    import matplotlib.pyplot as plt
    from PIL import Image

    first = np.atleast_1d(np.asarray(axes, dtype=object)).ravel()[0]
    PICTURES.mkdir(exist_ok=True)
    path = PICTURES / f"{name}.png"
    first.figure.savefig(path, dpi=72, bbox_inches="tight")
    # A palette does for drawings, at half the size.
    with Image.open(path) as image:
        small = image.convert("RGB").quantize(64)
    small.save(path, optimize=True)
    plt.close("all")


def page(kept: Kept, count: int) -> None:
    """All results on one page, in the order in which they were measured, networks side by side."""
    measured = []
    for name in ("gradients-at-start", "responses", "paths", "lesions", "landscape-0", "curvature"):
        for label in NETS:
            path = kept.folder / "numbers" / f"{name}-{label}.npz"
            if path.exists():
                kind = name.split("-")[0]
                measured.append(Measured(label, kind, probe.load(path), path.relative_to(kept.folder).as_posix()))
    (kept.folder / "report.html").write_text(probes_page(measured, "CIFAR-10", count), encoding="utf-8")


def rounded(item: Any) -> Any:
    """Numbers to 4 digits, for a file that people read."""
    if isinstance(item, dict):
        return {str(key): rounded(part) for key, part in item.items()}
    if isinstance(item, (list, tuple)):
        return [rounded(part) for part in item]
    if isinstance(item, (float, np.floating)):
        return float(f"{item:.4g}") if np.isfinite(item) else None
    return item


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/measured"))
    parser.add_argument("--test-images", type=int, default=500)
    parser.add_argument("--steps", type=int, default=17)
    parser.add_argument("--seeds", type=int, default=3, help="draws of directions for the surfaces")
    options = parser.parse_args(arguments)
    mpl.use("Agg")
    torch.set_num_threads(1)
    kept = Kept(options.out)
    train, test = images(options.data, "train", BATCH), images(options.data, "test", options.test_images)
    results: dict[str, Any] = {"images": {"train": BATCH, "test": options.test_images}}
    results["gradients_before_training"] = gradient_flow(kept, train)
    results["responses"] = layer_responses(kept, options.data, test)
    results["lesions"] = deletions(kept, options.data, test)
    results["paths"] = path_lengths(kept, options.data, train)
    results["landscape"] = surfaces(kept, options.data, train, options.steps, options.seeds)
    results["curvature"] = curvatures(kept, options.data, train)
    page(kept, options.test_images)
    measure.record("measured", rounded(results))


if __name__ == "__main__":
    main()
