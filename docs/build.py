"""What mkdocs does besides reading Markdown: generated pages, recorded numbers, and a check of the site it built."""

from __future__ import annotations

import json
import re
from pathlib import Path

from docs.making import checking, commands, connections, gallery, numbers, studies
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import skipway as sw

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Every connection has its place among the pages."""
    assert config.nav is not None
    for entry in config.nav:
        if "Connections" in entry:
            for title, names in connections.grouped().items():
                entry["Connections"].append({title: [{name: f"connections/{name}.md"} for name in names]})
    return config


def on_pre_build(config: MkDocsConfig) -> None:
    """Make the reports of the recorded studies, which are pages of the site."""
    studies.make_reports(ROOT / "docs" / "studies")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made of docstrings, traced networks and records, and the records themselves."""
    results = json.loads((RESULTS / "connections.json").read_text(encoding="utf-8"))["results"]
    pages = {f"connections/{name}.md": connections.page(name, results) for name in sw.connect.names()}
    pages["connections/index.md"] = connections.index(results)
    pages["studies/index.md"] = studies.index(ROOT / "docs" / "studies", numbers.TRAINED)
    pages["gallery.md"] = gallery.page()
    pages["reference/cli.md"] = commands.page()
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    for path in sorted(RESULTS.iterdir()):
        if path.suffix in (".json", ".png"):
            files.append(File.generated(config, f"results/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Recorded numbers in the places that ask for them, and links to the records where the site has them."""
    depth = page.file.src_uri.count("/")
    markdown = re.sub(r"\]\((?:\.\./)+benchmarks/results/", "](" + "../" * depth + "results/", markdown)
    try:
        return numbers.filled(markdown, RESULTS)
    except KeyError as error:
        raise PluginError(f"{page.file.src_uri} asks for {error}, which docs/making/numbers.py does not know") from None


def on_post_build(config: MkDocsConfig) -> None:
    """Fail where a link leads nowhere, or a page would ask the network for something."""
    # A page that only a server shows, with links from its root.
    (Path(config.site_dir) / "404.html").unlink()
    reports = tuple(f"studies/{place.name}/" for place in studies.recorded(ROOT / "docs" / "studies"))
    if found := list(checking.faults(Path(config.site_dir), reports)):
        raise PluginError("the site is not whole:\n  " + "\n  ".join(found))
