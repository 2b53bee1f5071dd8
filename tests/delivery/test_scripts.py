"""The shell scripts, the Dockerfile and the compose file: linted, and run without a daemon.

Docker itself is a stand-in on the PATH that notes its calls. The linters come with the `dev` extra.
"""

from __future__ import annotations

import http.server
import importlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(ROOT.glob("*.sh"))
SOURCED = [*ROOT.glob("scripts/*.sh"), *ROOT.glob(".ci/run")]
PYPROJECT = """\
[project]
name = "embedding-server"
version = "1.2.3"
dependencies = ["torch>=2.5", "numpy"]
"""


def tool(name: str) -> str:
    """A linter of the environment that runs the tests, activated or not."""
    beside_python = Path(sys.executable).with_name(name)
    found = str(beside_python) if beside_python.exists() else shutil.which(name)
    assert found, f"{name} is missing: install the dev extra"
    return found


def run(*command: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env=env or None, cwd=ROOT, capture_output=True, text=True, timeout=120
    )


def name_of(path: Path) -> str:
    return path.name


@pytest.mark.parametrize("script", [*SCRIPTS, *SOURCED], ids=name_of)
def test_shellcheck_finds_nothing(script: Path) -> None:
    linted = run(tool("shellcheck"), "--shell=bash", "--external-sources", str(script))
    assert linted.returncode == 0, linted.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=name_of)
def test_help_is_printed_and_nothing_else_happens(script: Path) -> None:
    assert os.access(script, os.X_OK)
    helped = run(str(script), "--help", PATH=os.environ["PATH"])
    assert (helped.returncode, helped.stderr) == (0, "")
    assert "usage" in helped.stdout.lower()
    assert script.name in helped.stdout


def test_hadolint_finds_nothing() -> None:
    linted = run(tool("hadolint"), "--no-color", "Dockerfile")
    assert linted.returncode == 0, linted.stdout


def test_yamllint_finds_nothing() -> None:
    config = "{extends: relaxed, rules: {line-length: {max: 100}}}"
    linted = run(tool("yamllint"), "--strict", "-d", config, "docker-compose.yaml")
    assert linted.returncode == 0, linted.stdout


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    document = yaml.safe_load((ROOT / "docker-compose.yaml").read_text(encoding="utf-8"))
    services: dict[str, Any] = document["services"]
    return services


def test_compose_serves_on_the_cpu_unless_asked_for_cards(services: dict[str, Any]) -> None:
    assert sorted(services) == ["embedding", "vacc"]
    assert "profiles" not in services["embedding"]
    assert services["vacc"]["profiles"] == ["vacc"]
    assert services["vacc"]["environment"]["EMBEDDING_DEVICE"] == "${EMBEDDING_DEVICE:-vacc}"
    assert "VACC_VISIBLE_DEVICES" in services["vacc"]["environment"]
    assert "BASE_IMAGE" in services["vacc"]["build"]["args"]


@pytest.mark.parametrize("name", ["embedding", "vacc"])
def test_compose_services_see_models_read_only_and_come_back(
    name: str, services: dict[str, Any]
) -> None:
    service = services[name]
    assert service["restart"] == "unless-stopped"
    assert service["ports"] == ["${PUBLISH_PORT:-8000}:8000"]
    [models] = service["volumes"]
    assert (models["target"], models["read_only"]) == ("/models", True)
    assert service["environment"]["EMBEDDING_MODELS_DIR"] == "/models"
    assert "stop_grace_period" in service


def test_compose_passes_on_every_setting(services: dict[str, Any]) -> None:
    fields = importlib.import_module("settings").Settings.model_fields
    # The address is the container's own: the published port is chosen beside it.
    wanted = {f"EMBEDDING_{name.upper()}" for name in fields} - {"EMBEDDING_HOST", "EMBEDDING_PORT"}
    for service in services.values():
        passed = {name for name in service["environment"] if name.startswith("EMBEDDING_")}
        assert passed == wanted


def dockerfile_lines() -> list[str]:
    """The Dockerfile's instructions, one a line, without comments."""
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    text = "\n".join(line for line in lines if not line.startswith("#"))
    return text.replace("\\\n", " ").splitlines()


def test_image_stops_by_sigterm_and_runs_as_nobody_special() -> None:
    lines = dockerfile_lines()
    [command] = [line for line in lines if line.startswith("CMD ")]
    # Exec form: a shell in between would keep SIGTERM to itself.
    assert json.loads(command.removeprefix("CMD ")) == (
        ["python3", "-m", "uvicorn", "embedding:app", "--host", "0.0.0.0", "--port", "8000"]
    )
    assert "USER 10001" in lines
    assert "EXPOSE 8000" in lines


def test_image_copies_only_what_the_context_holds() -> None:
    """A path that .dockerignore hides would break the build, which no other test runs."""
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    shown = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    assert copied_paths() == shown


def copied_paths() -> set[str]:
    copies = [line.split()[1:-1] for line in dockerfile_lines() if line.startswith("COPY ")]
    return {path.rstrip("/") for paths in copies for path in paths}


def test_image_has_every_module_that_the_project_ships(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    read_toml = importlib.import_module("image_requirements").read_toml
    shipped = read_toml(ROOT / "pyproject.toml")["tool"]["setuptools"]
    wanted = {f"{name}.py" for name in shipped["py-modules"]} | {
        name.partition(".")[0] for name in shipped["packages"]
    }
    assert wanted <= copied_paths()


def test_every_folder_of_code_is_shipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    read_toml = importlib.import_module("image_requirements").read_toml
    shipped = read_toml(ROOT / "pyproject.toml")["tool"]["setuptools"]["packages"]
    rooms = ("api", "batcher", "cli", "engine", "serving")
    there = [
        path.parent.relative_to(ROOT) for r in rooms for path in (ROOT / r).rglob("__init__.py")
    ]
    assert sorted(shipped) == sorted(folder.as_posix().replace("/", ".") for folder in there)


def health_checks(services: dict[str, Any]) -> list[list[str]]:
    lines = dockerfile_lines()
    [of_image] = [line for line in lines if line.startswith("HEALTHCHECK")]
    of_compose = [service["healthcheck"]["test"][1:] for service in services.values()]
    return [json.loads(of_image.partition("CMD ")[2]), *of_compose]


@pytest.fixture
def health() -> Iterator[list[int]]:
    """A server on a free port: [port, status], the status as the test sets it."""
    answer = [0, 503]

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(answer[1] if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    answer[0] = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield answer
    server.shutdown()
    server.server_close()
    thread.join()


def test_health_checks_follow_the_status_and_no_proxy(
    services: dict[str, Any], health: list[int]
) -> None:
    for check in health_checks(services):
        assert check[:2] == ["python3", "-c"]
        code = check[2].replace("8000", str(health[0]))
        for status, exit_code in ((200, 0), (503, 1)):
            health[1] = status
            done = run(sys.executable, "-c", code, http_proxy="http://127.0.0.1:9")
            assert done.returncode == exit_code, done.stderr


CONSTRAINTS = """\
numpy==2.4.6; python_version >= "3.11"
torch==2.13.0; python_version >= "3.11"
torch==2.9.0; python_version < "3.11"
torchvision==0.20
"""


@pytest.mark.parametrize("base_has_torch", [True, False])
def test_image_keeps_the_torch_of_its_base(tmp_path: Path, base_has_torch: bool) -> None:
    (tmp_path / "pyproject.toml").write_text(PYPROJECT)
    (tmp_path / "constraints.txt").write_text(CONSTRAINTS)
    packages = tmp_path / "packages"
    packages.mkdir()
    if base_has_torch:
        (packages / "torch.py").write_text("raise RuntimeError('must not be imported')")
    script = str(ROOT / "scripts" / "image_requirements.py")
    # -S: without the torch of the environment that runs the tests.
    done = run(sys.executable, "-S", script, str(tmp_path), str(tmp_path), PYTHONPATH=str(packages))
    assert done.returncode == 0, done.stderr
    wanted = (tmp_path / "requirements.txt").read_text().split("\n")
    pinned = (tmp_path / "constraints.txt").read_text().split("\n")
    assert [line for line in wanted if line] == ["torch>=2.5", "numpy"][base_has_torch:]
    assert len([line for line in pinned if line.startswith("torch==")]) == (
        0 if base_has_torch else 2
    )
    assert "torchvision==0.20" in pinned


FAKE_DOCKER = """#!/usr/bin/env bash
printf '%s\\n' "$*" >>"$DOCKER_CALLS"
case $1 in
  version) exit "${DOCKER_DAEMON:-0}" ;;
  image) echo amd64 ;;
  save) printf 'image bytes'; exit "${DOCKER_SAVE:-0}" ;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """package.sh beside a project of its own, with one model."""
    folder = tmp_path / "checkout"
    (folder / "models" / "tiny").mkdir(parents=True)
    (folder / "models" / "tiny" / "config.json").write_text("{}")
    (folder / "models" / "tiny" / "config.json").chmod(0o600)
    (folder / "pyproject.toml").write_text(PYPROJECT)
    shutil.copy(ROOT / "package.sh", folder)
    return folder


@pytest.fixture
def docker(tmp_path: Path) -> dict[str, str]:
    """The environment with a stand-in docker first on its PATH."""
    stand_in = tmp_path / "bin" / "docker"
    stand_in.parent.mkdir()
    stand_in.write_text(FAKE_DOCKER)
    stand_in.chmod(0o755)
    path = f"{stand_in.parent}{os.pathsep}{os.environ['PATH']}"
    return {"PATH": path, "DOCKER_CALLS": str(tmp_path / "calls")}


def test_package_holds_image_model_and_checksums_that_verify(
    checkout: Path, docker: dict[str, str]
) -> None:
    command = [str(checkout / "package.sh"), "--model", "tiny", "--base-image", "vendor/torch:1"]
    done = run(*command, **docker)
    assert done.returncode == 0, done.stderr
    dist = checkout / "dist"
    files = ["embedding-1.2.3-amd64.sha256", "embedding-1.2.3-amd64.tar.gz", "tiny.tar"]
    assert sorted(path.name for path in dist.iterdir()) == files
    checked = subprocess.run(["sha256sum", "-c", files[0]], cwd=dist, capture_output=True)
    assert checked.returncode == 0
    assert checked.stdout.count(b": OK") == 2
    with tarfile.open(dist / "tiny.tar") as packed:
        assert packed.getmember("tiny/config.json").mode & 0o444 == 0o444
    calls = Path(docker["DOCKER_CALLS"]).read_text().splitlines()
    assert calls[1].startswith("build --build-arg WITH_DEMO=1 --tag embedding:1.2.3 ")
    assert "BASE_IMAGE=vendor/torch:1" in calls[1]
    assert "docker load -i embedding-1.2.3-amd64.tar.gz" in done.stdout
    assert "EMBEDDING_MODEL=tiny" in done.stdout


def test_package_whose_save_breaks_leaves_no_archive(
    checkout: Path, docker: dict[str, str]
) -> None:
    done = run(str(checkout / "package.sh"), **docker, DOCKER_SAVE="1")
    assert done.returncode != 0
    assert list((checkout / "dist").iterdir()) == []


def test_package_without_docker_or_its_daemon_says_so(
    tmp_path: Path, checkout: Path, docker: dict[str, str]
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("bash", "dirname", "sed", "head"):
        (bare / name).symlink_to(shutil.which(name) or name)
    absent = run(str(checkout / "package.sh"), PATH=str(bare))
    assert (absent.returncode, "docker is not installed" in absent.stderr) == (1, True)
    stopped = run(str(checkout / "package.sh"), **docker, DOCKER_DAEMON="1")
    assert (stopped.returncode, "daemon does not answer" in stopped.stderr) == (1, True)
    assert not (checkout / "dist").exists()


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--model", "../etc"], 2, "is no model name"),
        (["--model", "absent"], 1, "fetch it first: ./download-model.sh absent"),
        (["--model"], 2, "needs a value"),
        (["--frob"], 2, "unknown argument '--frob'"),
    ],
)
def test_package_refuses_before_it_builds(
    arguments: list[str], status: int, message: str, checkout: Path, docker: dict[str, str]
) -> None:
    refused = run(str(checkout / "package.sh"), *arguments, **docker)
    assert refused.returncode == status
    assert message in refused.stderr
    assert not Path(docker["DOCKER_CALLS"]).exists()
