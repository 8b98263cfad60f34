"""`skipway probe` and `skipway report`: measuring what the skips of a network do."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skipway.cli.options import ModelOptions, parse_options
from skipway.cli.see import SPEC as _SPEC
from skipway.errors import SkipwayError, choose

if TYPE_CHECKING:
    from torch import nn

    from skipway.cli.batches import DataChoice
    from skipway.probe import Result
    from skipway.study import Images

_OF_A_MODEL = (
    "gradients", "responses", "paths", "lesions", "landscape", "trajectory", "curvature", "curvature_map", "reuse",
    "shattering", "symmetry_breaking", "symmetry_plane", "collisions", "singularities", "barrier",
)  # fmt: skip
# These build the networks that they compare, and take only the data.
_ALONE = ("identity", "construction", "two_parameters")
_NAMES = (*_OF_A_MODEL, *_ALONE)
# A report compares networks; these compare weights of one.
_REPORTED = tuple(name for name in _OF_A_MODEL if name not in ("trajectory", "barrier"))
_CHOSEN = "gradients,responses,lesions,paths,curvature,landscape"
_SHOWN_ROWS = 30

Data = Annotated[
    str,
    typer.Option(
        "--data",
        metavar="NAME|FOLDER",
        help="'digits' (embedded), a folder of images or parquet files, or a Hugging Face name.",
    ),
]
Part = Annotated[str, typer.Option(help="The part of the data: test or train.")]
Samples = Annotated[int, typer.Option(help="How many images are measured on.")]
BatchSize = Annotated[int, typer.Option(help="How many of them at a time.")]
ImageSize = Annotated[int | None, typer.Option(help="Bring images to this many pixels a side.", show_default="as is")]
Mean = Annotated[
    str | None,
    typer.Option(
        help="The mean of each channel (0 to 1) that the weights were trained with.", show_default="the data's"
    ),
]
Deviation = Annotated[
    str | None,
    typer.Option("--std", help="The standard deviation of each channel likewise.", show_default="the data's"),
]
Published = Annotated[
    bool, typer.Option("--published", help="Take the weights that torchvision, timm or the Hub publish.")
]
SkipName = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="The skip that the model is built with; of a model from outside, 'none' is its plain twin and any other "
        "stands in the place of its skips.",
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="An argument of the probe, such as steps=21. Several: repeat it."),
]


def probe(
    name: Annotated[str, typer.Argument(metavar="NAME", help=f"One of: {', '.join(_NAMES)}.")],
    spec: Annotated[
        str | None,
        typer.Argument(metavar="SPEC", help=f"{_SPEC} Not for {', '.join(_ALONE)}, which build their own networks."),
    ] = None,
    weights: Annotated[Path | None, typer.Option(metavar="FILE", help="Trained weights for the model.")] = None,
    data: Data = "digits",
    skip: SkipName = None,
    option: ModelOptions = None,
    part: Part = "test",
    samples: Samples = 512,
    batch_size: BatchSize = 128,
    image_size: ImageSize = None,
    mean: Mean = None,
    deviation: Deviation = None,
    published: Published = False,
    settings: Settings = None,
    other: Annotated[
        list[Path] | None,
        typer.Option(
            "--other", metavar="FILE", help="More weights of the same model, where the probe compares them. Repeat it."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Save the numbers here (.npz).")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw into this .png, .svg, .pdf or .html.")] = None,
) -> None:
    """Measure what the skips of a network do, on real images."""
    from skipway.cli.batches import flat_features, model_for

    choose("probe", name, _NAMES)
    function = probe_named(name)
    options = _options(name, function, settings or ())
    _check_plot(plot)
    chosen = _choice(data, part, samples, batch_size, image_size, mean, deviation)
    images = chosen.images()
    if name in _ALONE:
        if spec is not None or weights is not None:
            raise SkipwayError(f"{name} builds the networks that it compares: leave SPEC and --weights out")
        if option or skip is not None:
            left = "--option" if option else "--skip"
            raise SkipwayError(f"{name} builds the networks that it compares: leave {left} out; --set says of which")
        result = _measured(name, function, flat_features(images, chosen), options)
    else:
        if spec is None:
            raise SkipwayError(f"{name} measures a network: name one, as in 'skipway probe {name} resnet20'")
        model = model_for(spec, images, skip, weights, published, parse_options(option))
        result = _measured(name, function, _given(name, function, model, images, chosen, other or ()), options)
    if out is not None:
        print(f"skipway: saved in {result.save(out)}", file=sys.stderr)
    _show(result)
    if plot is not None:
        _draw(result, plot)
        print(f"skipway: drawn in {plot}", file=sys.stderr)


def report(
    specs: Annotated[
        list[str], typer.Argument(metavar="SPEC...", help="Networks, side by side; one of them twice too.")
    ],
    weights: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Trained weights, one file for each SPEC in their order.")
    ] = None,
    data: Data = "digits",
    skip: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="The skip that each SPEC is built with, in their order; one is for all."),
    ] = None,
    option: ModelOptions = None,
    probes: Annotated[
        str, typer.Option(help=f"What is measured, with commas between: {', '.join(_REPORTED)}.")
    ] = _CHOSEN,
    part: Part = "test",
    samples: Samples = 512,
    batch_size: BatchSize = 128,
    image_size: ImageSize = None,
    mean: Mean = None,
    deviation: Deviation = None,
    published: Published = False,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="PROBE.NAME=VALUE", help="An argument of a probe: landscape.steps=21. Repeat it."
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Folder for the page and the numbers; what it holds is not measured again.")
    ] = Path("runs/report"),
) -> None:
    """Measure several things on one or more networks, and write one page of it."""
    from skipway.cli.batches import model_for
    from skipway.report.probes import Measured, probes_page

    names = [choose("probe", word.strip(), _REPORTED) for word in probes.split(",") if word.strip()]
    if not names:
        raise SkipwayError("--probes is empty; name one at least, with commas between several")
    files = _one_each("--weights", weights, len(specs))
    skips = _one_each("--skip", skip, len(specs))
    options = {name: _options(name, probe_named(name), _settings_of(name, settings or (), names)) for name in names}
    built = parse_options(option)
    chosen = _choice(data, part, samples, batch_size, image_size, mean, deviation)
    images = chosen.images()
    labels = _labels(specs, files, skips)
    found: list[Measured] = []
    for label, spec, file, kind in zip(labels, specs, files, skips, strict=True):
        model = model_for(spec, images, kind, file, published, built)
        for name in names:
            key = _fingerprint(spec, file, kind, built, chosen, images.fingerprint, name, options[name])
            path = out / "numbers" / f"{name}-{key}.npz"
            print(f"skipway: {name} of {label}{' (measured before)' if path.exists() else ''}", file=sys.stderr)
            result = _known(path)
            if result is None:
                function = probe_named(name)
                result = _measured(name, function, _given(name, function, model, images, chosen, ()), options[name])
                result.save(path)
            found.append(Measured(label, name, result, path.relative_to(out).as_posix()))
    page = out / "report.html"
    page.write_text(probes_page(found, images.name, found[0].result.policy.samples), encoding="utf-8")
    print(f"Report: {page}")


def probe_named(name: str) -> Callable[..., Result]:
    """The function of a probe."""
    from skipway import probe as probes

    return getattr(probes, name)


def _given(
    name: str,
    function: Callable[..., Result],
    model: nn.Module,
    images: Images,
    chosen: DataChoice,
    files: Sequence[Path],
) -> dict[str, Any]:
    """What a probe of a model is called with: the model, the data, the loss, and other weights where it takes some."""
    from skipway.cli.batches import image_batches

    taken = inspect.signature(function).parameters
    given: dict[str, Any] = {"model": model, "data": image_batches(model, images, chosen), "loss": "cross_entropy"}
    twins = [_twin(model, path) for path in files]
    if "checkpoints" in taken:
        if len(twins) < 2:
            raise SkipwayError(f"{name} follows weights in training: give two files at least, each with --other FILE")
        given["checkpoints"] = [twin.state_dict() for twin in twins]
    elif "other" in taken and twins:
        given["other"] = twins if len(twins) > 1 else twins[0]
    elif "other" in taken and taken["other"].default is inspect.Parameter.empty:
        raise SkipwayError(f"{name} compares two trained networks: give the other's weights with --other FILE")
    elif twins:
        raise SkipwayError(f"{name} measures one network: leave --other out")
    return {key: value for key, value in given.items() if key in taken}


def _measured(name: str, function: Callable[..., Result], given: dict[str, Any], options: dict[str, Any]) -> Result:
    taken = inspect.signature(function).parameters
    try:
        return function(**{key: value for key, value in given.items() if key in taken}, **options)
    except KeyboardInterrupt as interruption:
        told = str(interruption) or f"{name} was interrupted; --set folder=PATH keeps what a long probe has measured"
        print(f"skipway: {told}", file=sys.stderr)
        raise typer.Exit(130) from None


def _options(name: str, function: Callable[..., Any], settings: Sequence[str]) -> dict[str, Any]:
    allowed = [
        key for key, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and key not in ("graph", "other", "test")
    ]  # fmt: skip
    options: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise SkipwayError(f"--set {setting!r} lacks its value: write --set steps=21")
        choose(f"argument of {name}", key.strip(), allowed)
        options[key.strip()] = _value(key.strip(), text.strip())
    return options


def _value(key: str, text: str) -> Any:
    if key == "dtype":
        import torch

        return getattr(torch, choose("precision", text, ("float32", "float64", "bfloat16", "float16")))
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _settings_of(name: str, settings: Sequence[str], names: Sequence[str]) -> list[str]:
    found = []
    for setting in settings:
        owner, dot, rest = setting.partition(".")
        if not dot or "=" in owner:
            raise SkipwayError(f"--set {setting!r} does not say of which probe: write --set landscape.steps=21")
        choose("probe among --probes", owner, names)
        if owner == name:
            found.append(rest)
    return found


def _choice(
    data: str, part: str, samples: int, batch_size: int, image_size: int | None, mean: str | None, deviation: str | None
) -> DataChoice:
    from skipway.cli.batches import DataChoice

    return DataChoice(
        data, part, samples, batch_size, image_size, _numbers("--mean", mean), _numbers("--std", deviation)
    )


def _numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(word) for word in text.split(","))
    except ValueError:
        raise SkipwayError(f"{option} takes numbers with commas between, as 0.485,0.456,0.406, not {text!r}") from None


def _one_each(option: str, given: Sequence[Any] | None, count: int) -> list[Any]:
    if not given:
        return [None] * count
    if len(given) == 1 and option == "--skip":
        return list(given) * count
    if len(given) != count:
        raise SkipwayError(f"{option} is given {len(given)} times for {count} networks: once for each, in their order")
    return list(given)


def _labels(specs: Sequence[str], files: Sequence[Path | None], skips: Sequence[str | None]) -> list[str]:
    """What tells the networks apart on the page: the SPEC, and what else differs between equal ones."""
    labels = []
    for spec, kind in zip(specs, skips, strict=True):
        label = spec if len(set(skips)) == 1 or kind is None else f"{spec} ({kind})"
        labels.append(label)
    stems = [None if file is None else file.stem for file in files]
    return [
        f"{label} ({stem})" if labels.count(label) > 1 and stem is not None else label
        for label, stem in zip(labels, stems, strict=True)
    ]


def _fingerprint(*parts: Any) -> str:
    import hashlib

    told = []
    for part in parts:
        changed = (part.stat().st_size, part.stat().st_mtime_ns) if isinstance(part, Path) else ()
        told.append(repr((part, changed)))
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:12]


def _known(path: Path) -> Result | None:
    from skipway.probe import load

    if not path.exists():
        return None
    try:
        return load(path)
    except SkipwayError as error:
        print(f"skipway: {error}; measured again", file=sys.stderr)
        return None


def _twin(model: nn.Module, path: Path) -> nn.Module:
    """The same model with other weights."""
    import copy

    from skipway import models

    twin = copy.deepcopy(model)
    models.load_weights(twin, path)
    return twin


def _show(result: Result) -> None:
    table = result.table()
    print(table.head(_SHOWN_ROWS).to_string(index=False, float_format=lambda value: f"{value:.4g}"))
    if len(table) > _SHOWN_ROWS:
        print(f"... {len(table) - _SHOWN_ROWS} more rows; --out keeps all")
    print(f"\n{result.caption}")


def _check_plot(path: Path | None) -> None:
    if path is not None and path.suffix not in (".png", ".svg", ".pdf", ".html"):
        raise SkipwayError(f"--plot writes .png, .svg, .pdf or .html, not {path.suffix or path.name!r}")
    if path is not None and not path.absolute().parent.is_dir():
        raise SkipwayError(f"there is no folder {str(path.parent)!r} to write {path.name} to")


def _draw(result: Result, path: Path) -> None:
    if path.suffix == ".html":
        result.interactive().write_html(path, include_plotlyjs=True)
        return
    import matplotlib as mpl
    import numpy as np

    with mpl.rc_context({"backend": "agg"}):
        axes = np.atleast_1d(np.asarray(result.plot(), dtype=object)).ravel()
        axes[0].figure.savefig(path, dpi=150, bbox_inches="tight")
