"""scripts/setup_browser.sh, with an apt-get of its own that only notes its calls."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.servers import ROOT

APT = """#!/bin/bash
echo "$* $DEBIAN_FRONTEND" >>"$FOLDER/calls"
case "$1 $LISTS" in
  "update absent") touch "$FOLDER/lists" ;;
  "install absent") [ -e "$FOLDER/lists" ] || exit 100 ;;
  *" broken") exit 100 ;;
esac
case $1 in install) printf '#!/bin/bash\\n' >"$FOLDER/chromium"; chmod +x "$FOLDER/chromium" ;; esac
"""
INSTALL = "install -y -qq --no-install-recommends chromium noninteractive"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """All of the PATH: no browser yet, root, and an apt-get."""
    for name, text in (("apt-get", APT), ("id", "#!/bin/bash\necho ${USER_ID:-0}\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    for name in ("touch", "chmod"):
        (tmp_path / name).symlink_to(f"/bin/{name}")
    return tmp_path


def setup(folder: Path, **environment: str) -> tuple[list[str], str]:
    """apt-get's calls and what was said; the script must never fail."""
    script = ROOT / "scripts" / "setup_browser.sh"
    done = subprocess.run(
        ["/bin/bash", "-c", f"set -euo pipefail; . '{script}'; setup_browser"],
        env={"PATH": str(folder), "FOLDER": str(folder), "LISTS": "here", **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, "")
    calls = folder / "calls"
    return calls.read_text().splitlines() if calls.exists() else [], done.stderr


def test_a_missing_browser_is_installed_once(folder: Path) -> None:
    calls, said = setup(folder)
    assert (calls, said.startswith("installing chromium")) == ([INSTALL], True)
    assert setup(folder) == ([INSTALL], "")


def test_the_list_of_packages_is_fetched_when_it_is_missing(folder: Path) -> None:
    calls, _ = setup(folder, LISTS="absent")
    assert [call.split()[0] for call in calls] == ["install", "update", "install"]
    assert (folder / "chromium").exists()


@pytest.mark.parametrize("name", ["chromium", "chromium-browser", "google-chrome"])
def test_a_browser_that_is_there_is_taken(folder: Path, name: str) -> None:
    (folder / name).symlink_to("/bin/true")
    assert setup(folder) == ([], "")


def test_a_browser_may_be_named(folder: Path) -> None:
    assert setup(folder, CHROMIUM="/bin/true") == ([], "")


@pytest.mark.parametrize(
    ("environment", "num_calls"),
    [({"USER_ID": "1000"}, 0), ({"LISTS": "broken"}, 2), ({"CHROMIUM": "/absent"}, 0)],
)
def test_what_cannot_be_installed_is_said_with_how(
    folder: Path, environment: dict[str, str], num_calls: int
) -> None:
    calls, said = setup(folder, **environment)
    assert len(calls) == num_calls
    assert "CHROMIUM=/path/to/it" in said
