"""`predict`: what a trained network makes of images, prompts and lines that it has not seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from skipway.errors import SkipwayError
from skipway.study.tasks.problems import TOKENIZER
from skipway.study.training.run_folder import RunFolder
from skipway.study.training.train import load_network


@dataclass(frozen=True)
class Prediction:
    """What a network makes of one input: in words, and where that is a file, its path.

    `answer` is a class, the prompt and what follows it, or a translation; `probability` is that of the class. A `note`
    says what was done to the input first.
    """

    given: str
    answer: str
    probability: float | None = None
    path: Path | None = None
    note: str = ""


def predict(
    folder: str | Path,
    inputs: Sequence[str | Path],
    *,
    out: str | Path | None = None,
    weights: Literal["best", "last"] = "best",
    length: int = 200,
    temperature: float = 0.8,
    seed: int = 0,
) -> list[Prediction]:
    """What the network that `train` left in `folder` makes of inputs.

    Images in classes: files, to a class each. Images with masks: files, to masks of the values that the training masks
    had, written as PNG beside the image or in `out`. A text: prompts, each gone on with for `length` characters drawn
    at `temperature` (0: the likeliest); by a network that sees both sides, texts with each "_" told. Pairs of lines:
    lines, to their translations. Raises SkipwayError for inputs that cannot be read or do not fit.
    """
    run = RunFolder(Path(folder).expanduser())
    content = run.read()
    network = load_network(run, weights)
    if not inputs:
        raise SkipwayError("there is nothing to predict from: give one input at least")
    kind, facts = content["training"]["task"], content["data"]
    with torch.no_grad():
        if kind == "classification":
            return [_classified(network, facts, content["training"]["data"], Path(one)) for one in inputs]
        if kind == "segmentation":
            target = None if out is None else Path(out).expanduser()
            return [_segmented(network, facts, Path(one), target) for one in inputs]
        texts = [str(one) for one in inputs]
        if kind == "language":
            return [_written(network, facts, text, length, temperature, seed) for text in texts]
        if kind == "hidden language":
            return [_told(network, facts, text) for text in texts]
        from skipway.study.tasks.lines import Tokenizer
        from skipway.study.tasks.translation import translated

        tokenizer = Tokenizer((run.path / TOKENIZER).read_text(encoding="utf-8"))
        lines = translated(network, tokenizer, texts, facts["length"])
        return [Prediction(text, line) for text, line in zip(texts, lines, strict=True)]


def _classified(network: nn.Module, facts: dict[str, Any], data: dict[str, Any], path: Path) -> Prediction:
    from skipway.study.tasks.sources import decode

    channels, height, width = facts["shape"]
    size = data["image_size"]
    pixels = decode([path], str(path), size)
    note = ""
    if tuple(pixels.shape[2:]) != (height, width):
        given = f"{pixels.shape[2]} x {pixels.shape[3]}"
        if height != width:
            raise SkipwayError(f"'{path}' is {given}, and the network learned from images of {height} x {width}")
        pixels = decode([path], str(path), height)
        note = f"images of {given} are brought to {height} x {width}, which the network learned from"
    probabilities = network(_normalised(pixels, facts, channels, path)).softmax(dim=1)[0]
    best = int(probabilities.argmax())
    return Prediction(str(path), facts["class_names"][best], float(probabilities[best]), note=note)


def _segmented(network: nn.Module, facts: dict[str, Any], path: Path, out: Path | None) -> Prediction:
    from PIL import Image

    from skipway.storing import writing
    from skipway.study.tasks.masks import read_pixels
    from skipway.study.tasks.segmentation import decide

    pixels = _normalised(read_pixels(path)[None], facts, facts["channels"], path)
    try:
        classes = decide(network(pixels))[0]
    except RuntimeError as error:
        raise SkipwayError(
            f"'{path}' of {pixels.shape[2]} x {pixels.shape[3]} does not fit the network: {error}"
        ) from error
    values = torch.tensor(facts["values"], dtype=torch.uint8)[classes]
    target = (path.parent if out is None else out) / f"{path.stem}-mask.png"
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values.numpy()).save(target)
    shares = ", ".join(f"{value}: {float((values == value).float().mean()):.1%}" for value in facts["values"])
    return Prediction(str(path), shares, path=target)


def _written(
    network: nn.Module, facts: dict[str, Any], prompt: str, length: int, temperature: float, seed: int
) -> Prediction:
    from skipway.study.tasks.language import decode, encode, written_on

    if not prompt:
        raise SkipwayError("a prompt is empty; give one character at least")
    start = encode(prompt, facts["characters"])
    tokens = written_on(network, start, length, facts["length"], temperature, seed)
    return Prediction(prompt, prompt + decode(tokens, facts["characters"]))


def _told(network: nn.Module, facts: dict[str, Any], text: str) -> Prediction:
    from skipway.study.tasks.hidden import HIDDEN
    from skipway.study.tasks.language import decode, encode

    known = facts["characters"]
    if HIDDEN not in text:
        raise SkipwayError(f"'{text}' hides nothing to be told: put {HIDDEN} in the place of characters")
    if len(text) > facts["length"]:
        raise SkipwayError(f"a text has {len(text)} characters, and the network sees {facts['length']} at once")
    places = torch.tensor([character == HIDDEN for character in text])
    shown = encode(text.replace(HIDDEN, known[0]), known).masked_fill(places, len(known))
    told = network(shown[None])[0, :, : len(known)].argmax(dim=1)
    return Prediction(text, decode(torch.where(places, told, shown).tolist(), known))


def _normalised(pixels: Tensor, facts: dict[str, Any], channels: int, path: Path) -> Float[Tensor, "n c h w"]:
    if pixels.shape[1] == 3 and channels == 1:
        raise SkipwayError(f"'{path}' is in colour, and the network learned from grey images")
    mean, deviation = (torch.tensor(facts[name])[:, None, None] for name in ("mean", "deviation"))
    return (pixels.expand(-1, channels, -1, -1).float() - mean) / deviation
