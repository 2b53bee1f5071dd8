"""Devices without hardware: fake plug-ins on the path of a subprocess, found by production code.

Torch can be imported and its PrivateUse1 device renamed once per process, so each process below
makes many attempts and the tests read what came of them.
"""

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from engine.devices import BACKENDS, DeviceError, choose_device, prepare_autoload

REPOSITORY = Path(__file__).resolve().parents[2]
AUTOLOAD = "TORCH_DEVICE_BACKEND_AUTOLOAD"
TORCH = f"torch {version('torch')}"
CPU = ["cpu", "cpu", "float32", "unpadded"]
Outcomes = dict[str, dict[str, Any]]

# argv: the device to prepare for, and a JSON list of [label, statements to run first, device].
DRIVER = """
import dataclasses, json, logging, os, sys
from engine.devices import DeviceError, choose_device, prepare_autoload

records = []
logging.getLogger("embedding.devices").addHandler(handler := logging.Handler())
handler.emit = records.append
prepare_autoload(sys.argv[1], os.environ)
import torch
# The machine that runs the tests may have one of these.
torch.cuda.is_available = torch.xpu.is_available = torch.mps.is_available = lambda: False

def attempt(before, requested):
    exec(before)
    records.clear()
    outcome = {"device": None, "error": None}
    try:
        outcome["device"] = dataclasses.astuple(choose_device(requested))
    except DeviceError as error:
        outcome["error"] = str(error)
    outcome["warnings"] = [f"{record.levelname} {record.getMessage()}" for record in records]
    outcome["imports"] = list(getattr(sys, "fake_imports", []))
    return outcome

outcomes = {label: attempt(before, name) for label, before, name in json.loads(sys.argv[2])}
print(json.dumps(outcomes))
"""

BROKEN_PLUG_IN = """
import sys
sys.fake_imports = [*getattr(sys, "fake_imports", []), __name__]
raise {error}
"""

# A plug-in with two devices and no kernel. `vacc.copy` stands for the way to the device and back:
# None leaves it to torch, which has none; a function makes the device compute right or wrong.
FAKE_VACC = """
import types
import torch

torch.utils.rename_privateuse1_backend("vacc")
vacc = types.ModuleType("torch.vacc")
vacc.is_available = lambda: True
vacc.device_count = lambda: 2
vacc.copy = None
torch._register_device_module("vacc", vacc)
torch_to = torch.Tensor.to

def to(tensor, *args, **kwargs):
    if vacc.copy is not None and str(args[0]).startswith("vacc"):
        return vacc.copy(tensor)
    return torch_to(tensor, *args, **kwargs)

torch.Tensor.to = to
"""

# A working plug-in that the table does not know.
FAKE_ZETA = """
import types
import torch

def start():
    if hasattr(torch, "zeta"):
        raise RuntimeError("started twice")
    zeta = types.ModuleType("torch.zeta")
    zeta.is_available = lambda: True
    zeta.device_count = lambda: 1
    torch.zeta = zeta
    torch_to = torch.Tensor.to
    torch.Tensor.to = lambda tensor, *args: (
        tensor if args[0] == "zeta:0" else torch_to(tensor, *args)
    )
"""


def write_package(folder: Path, name: str, source: str) -> None:
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(source)


def write_entry_point(folder: Path, name: str, value: str) -> None:
    info = folder / f"fake_{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: fake-{name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[torch.backends]\n{name} = {value}\n")


def run_python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environ = {key: value for key, value in os.environ.items() if key != AUTOLOAD}
    for backend in BACKENDS:
        environ.pop(backend.visible_variable or "", None)
    environ["PYTHONPATH"] = os.pathsep.join([str(folder), str(REPOSITORY)])
    return subprocess.run(
        [sys.executable, *arguments], env=environ, cwd=folder, capture_output=True, text=True
    )


def attempt_all(folder: Path, prepared: str, attempts: list[tuple[str, str, str]]) -> Outcomes:
    """Run attempts (label, statements to run before, device) in one process."""
    done = run_python(folder, "-c", DRIVER, prepared, json.dumps(attempts))
    assert done.returncode == 0, done.stderr
    outcomes: Outcomes = json.loads(done.stdout.splitlines()[-1])
    return outcomes


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A path with a torch_vacc that raises, and two entry points: one works, one has no module."""
    folder = tmp_path_factory.mktemp("broken")
    write_package(folder, "torch_vacc", BROKEN_PLUG_IN.format(error="RuntimeError('no driver')"))
    write_package(folder, "torch_zeta", FAKE_ZETA)
    write_entry_point(folder, "torch_zeta", "torch_zeta:start")
    write_entry_point(folder, "omega", "torch_omega:start")
    return folder


@pytest.fixture(scope="module")
def more_broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("more_broken")
    write_package(folder, "torch_npu", BROKEN_PLUG_IN.format(error="OSError('no .so\\nline 2')"))
    write_package(folder, "torch_mlu", BROKEN_PLUG_IN.format(error="SystemExit(3)"))
    return folder


@pytest.fixture(scope="module")
def among_broken(broken: Path, more_broken: Path) -> Outcomes:
    names = ["auto", "vacc", "vacc:1", "cuda", "mps", "npu", "omega", "zeta", "zeta:1", "abacus"]
    attempts = [(name, "", name) for name in names]
    attempts.append(("auto, three broken", f"sys.path.insert(0, {str(more_broken)!r})", "auto"))
    return attempt_all(broken, "auto", attempts)


@pytest.fixture(scope="module")
def vacc(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    """What came of a plug-in that imports well and then works, or fails in one of many ways."""
    folder = tmp_path_factory.mktemp("vacc")
    write_package(folder, "torch_vacc", FAKE_VACC)
    right = "torch.vacc.copy = lambda tensor: tensor.clone()"
    narrow = "tensor if tensor.dtype == torch.float32 else tensor * 0"
    one = "torch.vacc.device_count = lambda: 1; os.environ['VACC_VISIBLE_DEVICES'] = '5'"
    attempts = [
        ("no kernels", "", "vacc"),
        ("no kernels, auto", "", "auto"),
        ("wrong", "torch.vacc.copy = lambda tensor: tensor + 1", "vacc"),
        ("nan", "torch.vacc.copy = lambda tensor: tensor * float('nan')", "vacc"),
        ("wrong in float16", f"torch.vacc.copy = lambda tensor: {narrow}", "vacc"),
        ("right", right, "vacc"),
        ("right, second", "", " VACC:1 "),
        ("right, auto", "", "auto"),
        ("beyond two", "", "vacc:3"),
        ("beyond one", one, "vacc:1"),
        ("zero", "torch.vacc.device_count = lambda: 0", "vacc"),
        ("unavailable", "torch.vacc.is_available = lambda: False", "vacc"),
        ("unavailable, auto", "", "auto"),
        ("asking raises", "torch.vacc.is_available = lambda: 1 / 0", "vacc"),
    ]
    return attempt_all(folder, "auto", attempts)


def test_importing_and_preparing_leave_torch_unimported() -> None:
    code = (
        "import os, sys; from engine.devices import prepare_autoload;"
        "prepare_autoload('auto', os.environ);"
        f"print(os.environ['{AUTOLOAD}'], 'torch' in sys.modules)"
    )
    assert run_python(REPOSITORY, "-c", code).stdout.split() == ["0", "False"]


@pytest.mark.parametrize(
    ("requested", "before", "after"),
    [
        ("auto", {}, {AUTOLOAD: "0"}),
        ("vacc:1", {}, {AUTOLOAD: "0"}),
        ("auto", {AUTOLOAD: "1"}, {AUTOLOAD: "1"}),
        ("cpu", {}, {AUTOLOAD: "0"}),
        ("CPU ", {AUTOLOAD: "1"}, {AUTOLOAD: "0"}),
    ],
)
def test_autoload_is_off_unless_the_user_set_it_and_always_off_for_the_cpu(
    monkeypatch: pytest.MonkeyPatch, requested: str, before: dict[str, str], after: dict[str, str]
) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    environ = dict(before)
    prepare_autoload(requested, environ)
    assert environ == after


def test_preparing_after_torch_was_imported_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "torch", sys)
    environ: dict[str, str] = {}
    prepare_autoload("cpu", environ)
    assert environ == {}


def test_torch_itself_does_not_survive_the_broken_entry_point(broken: Path) -> None:
    """The control: without it, the tests below could pass on an entry point that nobody reads."""
    done = run_python(broken, "-c", "import torch")
    assert done.returncode == 1
    assert "RuntimeError: Failed to load the backend extension: omega" in done.stderr


def test_explicit_cpu_imports_no_plug_in_and_lets_transformers_import_none(
    broken: Path, more_broken: Path
) -> None:
    attempts = [
        ("cpu", f"sys.path.insert(0, {str(more_broken)!r})", "cpu"),
        # This module of transformers imports torch_npu if it finds it.
        ("then", "import transformers.integrations.sdpa_attention", "cpu:0"),
    ]
    for outcome in attempt_all(broken, "cpu", attempts).values():
        assert outcome == {"device": CPU, "error": None, "warnings": [], "imports": []}


def test_auto_falls_back_to_the_cpu_with_one_warning_that_names_plug_in_and_reason(
    among_broken: Outcomes,
) -> None:
    auto = among_broken["auto"]
    assert auto["device"] == CPU
    assert auto["warnings"] == [
        "WARNING device 'auto' uses cpu, because vacc: import torch_vacc failed: "
        "RuntimeError: no driver"
    ]
    assert auto["imports"] == ["torch_vacc"]


def test_auto_names_every_broken_plug_in_in_the_one_warning(among_broken: Outcomes) -> None:
    auto = among_broken["auto, three broken"]
    assert auto["device"] == CPU
    (warning,) = auto["warnings"]
    assert "vacc: import torch_vacc failed: RuntimeError: no driver; npu: " in warning
    assert "npu: import torch_npu failed: OSError: no .so; mlu: " in warning
    assert "mlu: import torch_mlu failed: SystemExit: 3" in warning


@pytest.mark.parametrize(
    ("requested", "error"),
    [
        ("vacc", "device 'vacc': import torch_vacc failed: RuntimeError: no driver"),
        ("vacc:1", "device 'vacc:1': import torch_vacc failed: RuntimeError: no driver"),
        (
            "cuda",
            f"device 'cuda': {TORCH} finds no usable device (CUDA_VISIBLE_DEVICES is not set)",
        ),
        ("mps", f"device 'mps': {TORCH} finds no usable device"),
        ("npu", "device 'npu': import torch_npu failed: ModuleNotFoundError: No module named"),
        ("omega", "device 'omega': the torch plug-in torch_omega:start failed: ModuleNotFound"),
        ("abacus", "device 'abacus': unknown; known are auto, cpu, vacc, npu, mlu, musa, gcu, "),
        ("zeta:1", "device 'zeta:1': only 1 device is visible"),
    ],
)
def test_an_explicit_device_that_fails_says_why(
    among_broken: Outcomes, requested: str, error: str
) -> None:
    outcome = among_broken[requested]
    assert outcome["device"] is None
    assert outcome["error"].startswith(error)
    assert outcome["warnings"] == []


def test_a_plug_in_that_only_has_an_entry_point_works_by_its_name(among_broken: Outcomes) -> None:
    assert among_broken["zeta"]["device"] == ["zeta:0", "zeta", "float32", "padded"]


@pytest.mark.parametrize(
    ("label", "error"),
    [
        ("no kernels", "device 'vacc': round trip in float32 failed: "),
        ("wrong", "device 'vacc': round trip in float32 failed: a product on vacc:0 is off by "),
        ("nan", "device 'vacc': round trip in float32 failed: a product on vacc:0 is off by nan"),
        ("wrong in float16", "device 'vacc': round trip in float16 failed: a product on vacc:0 "),
        (
            "beyond two",
            "device 'vacc:3': only 2 devices are visible (VACC_VISIBLE_DEVICES is not set)",
        ),
        ("beyond one", "device 'vacc:1': only 1 device is visible (VACC_VISIBLE_DEVICES=5)"),
        ("zero", "device 'vacc': torch_vacc sees no device (VACC_VISIBLE_DEVICES=5)"),
        (
            "unavailable",
            "device 'vacc': torch_vacc finds no usable device (VACC_VISIBLE_DEVICES=5)",
        ),
        ("asking raises", "device 'vacc': torch.vacc.is_available() failed: ZeroDivisionError: "),
    ],
)
def test_a_plug_in_that_imports_well_is_refused_for_what_it_does(
    vacc: Outcomes, label: str, error: str
) -> None:
    assert vacc[label]["device"] is None
    assert vacc[label]["error"].startswith(error)


@pytest.mark.parametrize(
    ("label", "reason"),
    [
        ("no kernels, auto", "vacc: round trip in float32 failed: "),
        ("unavailable, auto", "vacc: torch_vacc finds no usable device"),
    ],
)
def test_auto_warns_once_of_an_installed_plug_in_that_does_not_work(
    vacc: Outcomes, label: str, reason: str
) -> None:
    assert vacc[label]["device"] == CPU
    (warning,) = vacc[label]["warnings"]
    assert warning.startswith(f"WARNING device 'auto' uses cpu, because {reason}")


def test_a_plug_in_that_computes_right_is_chosen_in_half_precision_and_padded(
    vacc: Outcomes,
) -> None:
    first, second = (
        ["vacc:0", "vacc", "float16", "padded"],
        ["vacc:1", "vacc", "float16", "padded"],
    )
    assert vacc["right"]["device"] == first
    assert vacc["right, second"]["device"] == second
    assert vacc["right, auto"] == {"device": first, "error": None, "warnings": [], "imports": []}


@pytest.mark.parametrize("requested", ["", "auto:1", "cpu:1", "vacc:", "vacc:-1", "vacc:x", "a b"])
def test_a_name_that_cannot_be_a_device_is_refused(requested: str) -> None:
    with pytest.raises(DeviceError, match=f"^device {requested!r}: "):
        choose_device(requested)


def test_nothing_installed_means_the_cpu_without_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("engine.devices.BACKENDS", BACKENDS[-1:])
    monkeypatch.setattr("torch.mps.is_available", lambda: False)
    device = choose_device("auto")
    assert [device.name, device.kind, device.dtype, device.layout] == CPU
    assert caplog.records == []
