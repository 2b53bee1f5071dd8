"""The documents: links resolve, settings are described, the picture matches the results."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench import chart
from settings import PREFIX, Settings

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "models" / "README.md"],
    key=lambda path: path.relative_to(ROOT).as_posix(),
)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def _prose(path: Path) -> str:
    return _FENCE.sub("", path.read_text(encoding="utf-8"))


def _anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives to headings."""
    titles = re.findall(r"^#+ (.+)$", _prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_within_the_repository_lead_somewhere(path: Path) -> None:
    broken = []
    for link in _LINK.findall(_prose(path)):
        if link.startswith(("http://", "https://")):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        if not target.exists() or (anchor and anchor not in _anchors(target)):
            broken.append(link)
    assert broken == []


def test_settings_page_describes_every_setting_and_no_other() -> None:
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    tables = page.partition("## Renamed settings")[0]
    rows = [line.split("|")[1] for line in tables.splitlines() if line.startswith("| `")]
    described = {name for row in rows for name in re.findall(rf"`({PREFIX}\w+)`", row)}
    assert described == {PREFIX + name.upper() for name in Settings.model_fields}


@pytest.mark.parametrize("readme", ["README.md", "README.zh.md"])
def test_readme_names_only_settings_that_are_described(readme: str) -> None:
    known = set(re.findall(rf"{PREFIX}\w+", (ROOT / "docs" / "settings.md").read_text("utf-8")))
    named = set(re.findall(rf"{PREFIX}[A-Z_]+", (ROOT / readme).read_text("utf-8")))
    assert named - {PREFIX} <= known


def test_both_readmes_show_the_same_figures_and_commands() -> None:
    english, chinese = ((ROOT / name).read_text("utf-8") for name in ("README.md", "README.zh.md"))
    for pattern in (r"bench/results/[\w.-]+", r"^\./[\w-]+\.sh", r"docs/[\w.-]+", r"^curl \S+"):
        assert set(re.findall(pattern, english, re.M)) == set(re.findall(pattern, chinese, re.M))


def test_picture_is_drawn_from_the_kept_results() -> None:
    assert chart.TARGET.read_text(encoding="utf-8") == chart.draw(chart.panels())
