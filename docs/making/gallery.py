"""The page of the gallery: the pictures in `docs/gallery`, each with the lines of `docs/gallery.py` that made it."""

from __future__ import annotations

import ast
import textwrap
from pathlib import Path

DOCS = Path(__file__).parents[1]
# Pictures that benchmarks made, and what each shows; they lie beside their numbers.
_RECORDED = (
    ("measured/surfaces.png", "Loss surfaces of 56 layers, plain and residual, trained on CIFAR-10."),
    ("measured/contours.png", "The same loss, contours at the same levels."),
    ("measured/lesions.png", "Deleting and exchanging blocks of trained networks."),
    ("measured/paths.png", "The gradient of a trained ResNet-56 by path length."),
    ("measured/curvature.png", "Spectral density of the Hessian of four trained networks."),
    ("results/depth_1001.png", "1001 layers on digits, with skips and without."),
    ("results/training_unet.png", "U-Nets with other long skips on cell membranes."),
    ("results/connections.png", "Every connection in four small networks."),
)


def shown() -> list[tuple[str, str, str, str, str]]:
    """Heading, title, name, sentence and lines of every picture, read from the source without running it."""
    tree = ast.parse((source := DOCS / "gallery.py").read_text(encoding="utf-8"))
    lines = source.read_text(encoding="utf-8").splitlines()
    found = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and (said := ast.get_docstring(node)) and "\n\n" in said:
            sentence, place = said.split("\n\n")
            heading, title = place.split(": ")
            body = textwrap.dedent("\n".join(lines[node.body[1].lineno - 1 : node.end_lineno]))
            found.append((heading, title, node.name, sentence, body))
    return found


def page() -> str:
    """The Markdown of the gallery."""
    lines = [
        "# Gallery",
        "",
        "Pictures that skipway draws, each with the lines that made it. `python docs/gallery.py` makes them again; "
        "`digits(n)` are test digits, and `trained(...)` is a network that `sw.study.train` trained on digits for some "
        "epochs.",
        "",
    ]
    last = ""
    for heading, title, name, sentence, body in shown():
        picture = next((path for path in sorted((DOCS / "gallery").glob(f"{name}.*"))), None)
        if picture is None:
            continue
        lines += [f"## {heading}", ""] if heading != last else []
        last = heading
        lines += [f"### {title}", "", sentence, ""]
        if picture.suffix == ".svg":
            lines += ['<div class="drawing" markdown="0">', picture.read_text(encoding="utf-8"), "</div>", ""]
        else:
            lines += [f"![{sentence}](gallery/{picture.name}){{ .plot }}", ""]
        lines += ["```python", body, "```", ""]
    lines += ["## From the records", ""]
    for path, sentence in _RECORDED:
        lines += [sentence, "", f"![{sentence}]({path}){{ .plot }}", ""]
    return "\n".join(lines)
