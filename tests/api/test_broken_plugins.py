"""A torch plug-in that breaks at import must not break a server that can do without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.servers import start_server

BROKEN = 'raise ImportError("libvacc_runtime.so: cannot open shared object file")\n'
ENTRY_POINTS = "[torch.backends]\ntorch_vacc = torch_vacc:_autoload\n"
METADATA = "Metadata-Version: 2.1\nName: torch-vacc\nVersion: 1.0\n"


@pytest.fixture
def broken(tmp_path: Path) -> dict[str, Any]:
    """Variables that put a broken torch_vacc on the path, and no model."""
    plugins, models = tmp_path / "plugins", tmp_path / "models"
    (plugins / "torch_vacc").mkdir(parents=True)
    (plugins / "torch_vacc" / "__init__.py").write_text(BROKEN)
    models.mkdir()
    return {"PYTHONPATH": str(plugins), "EMBEDDING_MODELS_DIR": str(models)}


def register_autoload(environment: dict[str, Any]) -> None:
    """As an installed plug-in does: `import torch` alone then imports it, and raises."""
    info = Path(environment["PYTHONPATH"]) / "torch_vacc-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(METADATA)
    (info / "entry_points.txt").write_text(ENTRY_POINTS)


@pytest.mark.parametrize("is_registered", [False, True])
def test_auto_serves_on_the_cpu_with_one_warning_that_names_the_plug_in(
    broken: dict[str, Any], is_registered: bool
) -> None:
    if is_registered:
        register_autoload(broken)
    with start_server(EMBEDDING_DEVICE="auto", **broken) as server:
        answer = server.embed({"input": "a"})
        assert answer.status_code == 200, answer.text
        with server.client() as client:
            assert client.get("/health").json()["device"] == "cpu"
        assert server.stop() == 0
        warnings = [line for line in server.log().splitlines() if " WARNING " in line]
    about_devices = [line for line in warnings if "stand-in" not in line]
    assert len(about_devices) == 1, warnings
    assert "import torch_vacc failed" in about_devices[0]
    assert "libvacc_runtime.so" in about_devices[0]


def test_asking_for_the_broken_device_refuses_to_start_and_says_why(
    broken: dict[str, Any],
) -> None:
    with start_server(wait=False, EMBEDDING_DEVICE="vacc", **broken) as server:
        assert server.process.wait(60) == 1
        lines = [line for line in server.log().splitlines() if "cannot start" in line]
        assert len(lines) == 1, server.log()
        for words in ("'vacc'", "import torch_vacc failed", "libvacc_runtime.so"):
            assert words in lines[0]
        assert "Traceback" not in server.log()


def test_an_explicit_cpu_serves_whatever_registers_itself_with_torch(
    broken: dict[str, Any],
) -> None:
    register_autoload(broken)
    with start_server(EMBEDDING_DEVICE="cpu", **broken) as server:
        assert server.embed({"input": "a"}).status_code == 200
        assert server.stop() == 0
        assert "torch_vacc" not in server.log()
