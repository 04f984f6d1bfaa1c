"""What MkDocs does for the site of the documentation (`make docs`) besides what mkdocs.yml says: its hooks.

The pages are written to be read in the repository. Those outside docs/ are added to the site, links are changed accordingly,
and headings get the anchors that GitHub gives them. Links to source files become plain text.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
#: The pages outside docs/, and the folder of the site that they are in: index.md has the place of a README.
PROJECT = {"README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"}
FOLDER = "project"
#: On a narrow screen, a table scrolls and not the page.
STYLE = "table { display: block; overflow-x: auto; }\n"

_LINK = re.compile(
    r"\[(?P<text>(?:[^\[\]]|\[[^\]]*\])*)\]\((?P<target>[^)\s#]+)(?P<anchor>#[^)\s]*)?\)"
)


def on_config(config: Any) -> Any:
    """Set how headings become anchors."""
    config.mdx_configs["toc"] = {**config.mdx_configs.get("toc", {}), "slugify": slug}
    return config


def slug(heading: str, _separator: str) -> str:
    """Return the anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages outside docs/, and the style sheet."""
    from mkdocs.structure.files import File

    for name in sorted(PROJECT):
        content = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, f"{FOLDER}/{name}", content=content))
    files.append(File.generated(config, "site.css", content=STYLE))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Change a page's links to what they are on the site."""
    in_project = page.file.src_uri.startswith(f"{FOLDER}/")
    if in_project:
        markdown = re.sub(r'((?:src|srcset)=")docs/', r"\1../", markdown)

    def changed(match: re.Match[str]) -> str:
        target = match["target"]
        if ":" in target:
            return match[0]
        inside = target.removeprefix("docs/" if in_project else "../")
        if in_project and target.startswith("docs/"):
            target = f"../{inside}"
        elif inside in PROJECT and (in_project or target.startswith("../")):
            target = inside if in_project else f"{FOLDER}/{inside}"
        elif in_project or target.startswith("../"):
            return match["text"]
        return f"[{match['text']}]({target}{match['anchor'] or ''})"

    return _LINK.sub(changed, markdown)
