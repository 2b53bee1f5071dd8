"""download-model.sh against a hub look-alike on 127.0.0.1, through the real huggingface-hub client.

Every test runs the script from a copy of the checkout, with the Python that runs the tests, and a
guard in that Python that notes each host it turns to. Nothing here may reach another machine.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMIT = "5617a9f61b028005a4858fdac845db406aefb181"
MIB = 1 << 20
WEIGHTS = random.Random(7).randbytes(14 * MIB)  # more than the client's step of 10 MiB

SERVED = {
    "config.json": b'{"model_type": "bert"}',
    "config_sentence_transformers.json": b"{}",
    "sentence_bert_config.json": b'{"max_seq_length": 512}',
    "modules.json": b"[]",
    "1_Pooling/config.json": b'{"pooling_mode_cls_token": true}',
    "2_Dense/config.json": b"{}",
    "2_Dense/pytorch_model.bin": random.Random(8).randbytes(3000),
    "tokenizer.json": b'{"version": "1.0"}',
    "tokenizer_config.json": b"{}",
    "special_tokens_map.json": b"{}",
    "sentencepiece.bpe.model": random.Random(9).randbytes(2 * MIB),
    "vocab.txt": b"[PAD]\n[UNK]\n",
    "model.safetensors": WEIGHTS,
    "sparse_linear.pt": random.Random(10).randbytes(3520),
    "colbert_linear.pt": random.Random(11).randbytes(3521),
}
DECOYS = {
    "README.md": b"# model",
    ".gitattributes": b"*.bin filter=lfs",
    "pytorch_model.bin": WEIGHTS[: 2 * MIB],
    "tf_model.h5": WEIGHTS[:MIB],
    "flax_model.msgpack": WEIGHTS[:MIB],
    "rust_model.ot": WEIGHTS[:MIB],
    "onnx/model.onnx": WEIGHTS[:MIB],
    "onnx/config.json": b"{}",
    "openvino/openvino_model.xml": b"<net/>",
    "imgs/bm25.jpg": b"jpg",
    "train_script.py": b"import os",
    "modeling_custom.py": b"import os",
}


@dataclass
class Asked:
    method: str
    path: str
    range: str | None
    authorization: str | None


@dataclass
class Hub:
    """What the look-alike has, what it was asked, and where it stops in the middle of a file."""

    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    damaged: bool = False
    stall_after: int | None = None
    release: threading.Event = field(default_factory=threading.Event)
    asked: list[Asked] = field(default_factory=list)
    url: str = ""

    def listing(self, repo: str) -> dict[str, object]:
        files = [describe(path, content) for path, content in self.repos[repo].items()]
        return {"id": repo, "modelId": repo, "sha": COMMIT, "siblings": files, "tags": []}

    def large_file(self, sha256: str) -> bytes:
        contents = [content for files in self.repos.values() for content in files.values()]
        return next(c for c in contents if hashlib.sha256(c).hexdigest() == sha256)


def describe(path: str, content: bytes) -> dict[str, object]:
    """A file as the hub lists it: large ones by SHA-256, small ones by git's SHA-1."""
    sibling: dict[str, object] = {"rfilename": path, "size": len(content)}
    sibling["blobId"] = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    if is_large(content):
        sha256 = hashlib.sha256(content).hexdigest()
        sibling["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 134}
        sibling["blobId"] = "0" * 40  # of the pointer: of no use to whoever has the content
    return sibling


def is_large(content: bytes) -> bool:
    return len(content) > 2000


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> Hub:
        assert isinstance(self.server, HubServer)
        return self.server.hub

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        authorization = self.headers["Authorization"]
        self.hub.asked.append(Asked("GET", path, self.headers["Range"], authorization))
        if listed := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
            self.send_listing(listed[1], listed[2])
        elif wanted := re.fullmatch(rf"/([^/]+/[^/]+)/resolve/{COMMIT}/(.+)", path):
            self.send_file(wanted[1], wanted[2])
        elif large := re.fullmatch(r"/cdn/([0-9a-f]{64})", path):
            self.send_bytes(self.hub.large_file(large[1]))
        else:
            self.refuse(404, "EntryNotFound")

    def send_listing(self, repo: str, revision: str | None) -> None:
        if repo not in self.hub.repos:
            self.refuse(401, "RepoNotFound")
        elif revision not in (None, "main", COMMIT):
            self.refuse(404, "RevisionNotFound")
        else:
            self.send_bytes(json.dumps(self.hub.listing(repo)).encode())

    def send_file(self, repo: str, path: str) -> None:
        content = self.hub.repos[repo][path]
        if repo in self.hub.gated and self.headers["Authorization"] != "Bearer right":
            self.refuse(403, "GatedRepo")
        elif is_large(content):  # as the hub does it: a redirect to where large files lie
            self.send_response(302)
            self.send_header(
                "Location", f"{self.hub.url}/cdn/{hashlib.sha256(content).hexdigest()}"
            )
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self.send_bytes(content)

    def send_bytes(self, content: bytes) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
        start = int(asked[1]) if asked else 0
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        body = bytes(len(content)) if self.hub.damaged and is_large(content) else content
        if self.hub.stall_after is not None and len(content) > self.hub.stall_after:
            self.wfile.write(body[start : self.hub.stall_after])
            self.hub.release.wait(timeout=120)
            self.close_connection = True
        else:
            self.wfile.write(body[start:])

    def refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


class HubServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, hub: Hub) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.hub = hub
        hub.url = f"http://127.0.0.1:{self.server_address[1]}"


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub()
    server = HubServer(hub)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield hub
    hub.release.set()
    server.shutdown()
    server.server_close()
    thread.join()


NOTE_HOSTS = """
import os, sys

def note(event, args):
    if event == "socket.connect" and isinstance(args[1], tuple):
        host = args[1][0]
    elif event == "socket.getaddrinfo":
        host = args[0]
    else:
        return
    with open(os.environ["HOSTS_FILE"], "a") as hosts:
        print(host, file=hosts)
    if host != "127.0.0.1":
        raise PermissionError(f"the test allows no {host}")

sys.addaudithook(note)
"""


@dataclass
class Checkout:
    """A copy of the project's download half, with an environment that holds nothing else."""

    folder: Path
    env: dict[str, str]

    @property
    def models(self) -> Path:
        return self.folder / "models"

    def command(self, *arguments: str) -> list[str]:
        return [str(self.folder / "download-model.sh"), *arguments]

    def run(self, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments),
            env={**self.env, **env},
            cwd=self.folder.parent,
            capture_output=True,
            text=True,
            timeout=300,
        )

    def hosts(self) -> set[str]:
        return set(Path(self.env["HOSTS_FILE"]).read_text().split())


@pytest.fixture
def checkout(tmp_path: Path, hub: Hub) -> Checkout:
    folder = tmp_path / "checkout"
    shutil.copytree(ROOT / "scripts", folder / "scripts")
    shutil.copy(ROOT / "download-model.sh", folder)
    guard = tmp_path / "guard"
    guard.mkdir()
    (guard / "sitecustomize.py").write_text(NOTE_HOSTS)
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path / "home"),
        "PYTHON": sys.executable,
        "PYTHONPATH": str(guard),
        "HOSTS_FILE": str(tmp_path / "hosts"),
        "HF_ENDPOINT": hub.url,
    }
    return Checkout(folder, env)


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file of a fetched model, less the script's own record."""
    found = [path for path in folder.rglob("*") if path.is_file() and path.name != ".fetched.json"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def visible_models(models: Path) -> list[str]:
    return sorted(path.parent.name for path in models.glob("*/config.json"))


def test_fetches_exactly_what_serving_needs_from_the_named_hub_alone(
    hub: Hub, checkout: Checkout
) -> None:
    hub.repos["BAAI/bge-m3"] = SERVED | DECOYS
    done = checkout.run()
    assert done.returncode == 0, done.stderr
    assert files_of(checkout.models / "bge-m3") == SERVED
    assert not (checkout.models / ".partial").exists()
    assert "EMBEDDING_MODEL=bge-m3 ./serve.sh" in done.stdout
    assert f"{len(SERVED)} files, 17 MB" in done.stdout
    assert checkout.hosts() == {"127.0.0.1"}


def test_pickled_weights_come_where_there_are_no_safetensors(hub: Hub, checkout: Checkout) -> None:
    hub.repos["o/pickled"] = {"config.json": b"{}", "pytorch_model.bin": WEIGHTS[:MIB]} | {
        "onnx/model.onnx": b"x"
    }
    done = checkout.run("o/pickled")
    assert done.returncode == 0, done.stderr
    fetched = sorted(files_of(checkout.models / "pickled"))
    assert fetched == ["config.json", "pytorch_model.bin"]


def test_another_models_folder_is_taken_from_the_flag_or_the_setting(
    tmp_path: Path, hub: Hub, checkout: Checkout
) -> None:
    hub.repos["o/m"] = {"config.json": b"{}", "model.safetensors": b"w"}
    by_flag = checkout.run("o/m", "--dir", "elsewhere")  # from where the command is given
    assert by_flag.returncode == 0, by_flag.stderr
    model = checkout.folder.parent / "elsewhere" / "m"
    assert f"EMBEDDING_MODELS_DIR={model.parent} EMBEDDING_MODEL=m" in by_flag.stdout
    by_setting = checkout.run("o/m", EMBEDDING_MODELS_DIR=str(tmp_path / "a folder"))
    assert by_setting.returncode == 0, by_setting.stderr
    assert f"EMBEDDING_MODELS_DIR='{tmp_path}/a folder'" in by_setting.stdout
    assert files_of(tmp_path / "a folder" / "m") == files_of(model) == hub.repos["o/m"]


def test_killed_download_is_no_model_and_goes_on_from_its_last_byte(
    hub: Hub, checkout: Checkout
) -> None:
    hub.repos["BAAI/bge-m3"] = SERVED
    hub.stall_after = 11 * MIB
    command = checkout.command("bge-m3")
    with subprocess.Popen(
        command, env=checkout.env, stdout=subprocess.DEVNULL, start_new_session=True
    ) as first:
        part = wait_for_part(checkout.models, 10 * MIB)
        second = checkout.run("bge-m3")
        os.killpg(first.pid, signal.SIGKILL)
    assert (second.returncode, "another download" in second.stderr) == (1, True)
    assert visible_models(checkout.models) == []
    have = part.stat().st_size

    hub.stall_after = None
    hub.release.set()
    hub.asked.clear()
    done = checkout.run("bge-m3")
    assert done.returncode == 0, done.stderr
    assert files_of(checkout.models / "bge-m3") == SERVED
    assert [asked.range for asked in hub.asked if asked.range] == [f"bytes={have}-"] * 2
    assert "from an earlier run" in done.stdout


def wait_for_part(models: Path, size: int) -> Path:
    """The half-written weights, once they have that many bytes: the disk gives no event for it."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for part in models.glob(".partial/*/*/model.safetensors.part"):
            if part.stat().st_size >= size:
                return part
        time.sleep(0.02)
    raise AssertionError("the weights never began to arrive")


def test_complete_model_is_left_alone_without_asking_the_hub(hub: Hub, checkout: Checkout) -> None:
    hub.repos["BAAI/bge-m3"] = {"config.json": b"{}", "model.safetensors": b"weights"}
    assert checkout.run("BGE-M3").returncode == 0
    hub.asked.clear()
    for arguments in ([], ["bge-m3", "--revision", "main"], ["bge-m3", "--revision", COMMIT]):
        again = checkout.run(*arguments)
        assert (again.returncode, hub.asked) == (0, [])
        assert "is complete already" in again.stdout
    other = checkout.run("bge-m3", "--revision", "v2")
    assert other.returncode == 1
    assert "another revision" in other.stderr


def test_folder_that_something_else_made_is_never_overwritten(hub: Hub, checkout: Checkout) -> None:
    hub.repos["mine/m"] = hub.repos["yours/m"] = {"config.json": b"{}", "model.safetensors": b"w"}
    (checkout.models / "m").mkdir(parents=True)
    (checkout.models / "m" / "config.json").write_text("{}")
    half = checkout.run("mine/m")
    assert half.returncode == 1
    assert "has no weights" in half.stderr
    (checkout.models / "m" / "pytorch_model.bin").write_text("w")
    assert "left as it is" in checkout.run("mine/m").stdout
    shutil.rmtree(checkout.models / "m")
    assert checkout.run("mine/m").returncode == 0
    assert "holds mine/m" in checkout.run("yours/m").stderr


def test_damaged_bytes_are_dropped_and_fetched_again(hub: Hub, checkout: Checkout) -> None:
    hub.repos["o/m"] = {"config.json": b"{}", "model.safetensors": WEIGHTS[:MIB]}
    hub.damaged = True
    first = checkout.run("o/m")
    assert first.returncode == 1
    assert "model.safetensors arrived damaged" in first.stderr
    assert visible_models(checkout.models) == []
    hub.damaged = False
    assert checkout.run("o/m").returncode == 0
    assert files_of(checkout.models / "m") == hub.repos["o/m"]


@pytest.mark.parametrize(
    "name",
    ["../x", "a/b/c", "-x", "$(id)", "", "a b/c", "a/..", "a/.b", "o/m;id", "bge-m4", "a/b\n"],
)
def test_name_that_is_no_model_is_refused_before_anything_happens(
    name: str, hub: Hub, checkout: Checkout
) -> None:
    refused = checkout.run(name)
    assert refused.returncode == 2
    assert re.search("no model name|unrecognized arguments", refused.stderr)
    assert "Traceback" not in refused.stderr
    assert (hub.asked, checkout.models.exists()) == ([], False)


def test_repository_that_is_not_there_is_named(hub: Hub, checkout: Checkout) -> None:
    missing = checkout.run("o/nothing")
    assert missing.returncode == 1
    assert f"{hub.url} has no model o/nothing" in missing.stderr
    assert not (checkout.models / ".partial").exists()
    hub.repos["o/m"] = {"config.json": b"{}", "model.safetensors": b"w"}
    assert "has no revision v9" in checkout.run("o/m", "--revision", "v9").stderr
    hub.repos["o/onnx"] = {"config.json": b"{}", "onnx/model.onnx": b"w"}
    assert "o/onnx has no weights" in checkout.run("o/onnx").stderr


def test_gated_model_says_how_to_get_in_and_takes_a_token(hub: Hub, checkout: Checkout) -> None:
    hub.repos["o/m"] = {"config.json": b"{}", "model.safetensors": WEIGHTS[:MIB]}
    hub.gated.add("o/m")
    gated = checkout.run("o/m")
    assert gated.returncode == 1
    assert "o/m is gated" in gated.stderr
    assert "HF_TOKEN" in gated.stderr
    assert checkout.run("o/m", HF_TOKEN="right").returncode == 0


def test_unreachable_hub_gives_one_line_and_the_way_on(checkout: Checkout, hub: Hub) -> None:
    nowhere = checkout.run("bge-m3", HF_ENDPOINT="http://127.0.0.1:9")
    assert nowhere.returncode == 1
    assert "http://127.0.0.1:9: ConnectError" in nowhere.stderr
    assert "Traceback" not in nowhere.stderr
    wrong = checkout.run("bge-m3", HF_ENDPOINT="hf-mirror.com")
    assert (wrong.returncode, "must begin with http" in wrong.stderr) == (1, True)
    offline = checkout.run("bge-m3", HF_HUB_OFFLINE="1")
    assert (offline.returncode, "HF_HUB_OFFLINE forbids it" in offline.stderr) == (1, True)


def test_python_without_the_client_gets_the_command_to_run(
    tmp_path: Path, checkout: Checkout
) -> None:
    bare = tmp_path / "bare-python"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    bare.chmod(0o755)
    refused = checkout.run("bge-m3", PYTHON=str(bare))
    assert refused.returncode == 1
    assert ".venv/bin/pip install -c constraints.txt huggingface-hub" in refused.stderr
    absent = checkout.run("bge-m3", PYTHON="no-such-python")
    assert (absent.returncode, "no Python 3.10" in absent.stderr) == (1, True)


MODELSCOPE_API = """
class HubApi:
    def get_model_files(self, model_id, revision=None, recursive=False):
        assert (model_id, revision, recursive) == ("BAAI/bge-m3", "master", True)
        names = {"config.json": 2, "pytorch_model.bin": 7, "onnx/model.onnx": 1}
        return [{"Path": name, "Size": size} for name, size in names.items()]
"""
MODELSCOPE_DOWNLOAD = """
from pathlib import Path

def snapshot_download(model_id, revision, local_dir, allow_patterns):
    assert allow_patterns == ["config.json", "pytorch_model.bin"]
    folder = Path(local_dir)
    (folder / "._____temp").mkdir(parents=True)
    (folder / ".msc").write_text("the client's own notes")
    (folder / "config.json").write_text("{}")
    (folder / "pytorch_model.bin").write_text("weights")
"""


def test_modelscope_is_asked_through_its_package(tmp_path: Path, checkout: Checkout) -> None:
    package = tmp_path / "fake" / "modelscope"
    (package / "hub").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "hub" / "__init__.py").touch()
    (package / "hub" / "api.py").write_text(MODELSCOPE_API)
    (package / "hub" / "snapshot_download.py").write_text(MODELSCOPE_DOWNLOAD)
    path = f"{checkout.env['PYTHONPATH']}{os.pathsep}{package.parent}"
    done = checkout.run("bge-m3", "--source", "modelscope", PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    fetched = files_of(checkout.models / "bge-m3")
    assert fetched == {"config.json": b"{}", "pytorch_model.bin": b"weights"}


def test_modelscope_without_its_package_says_how_to_get_it(
    tmp_path: Path, checkout: Checkout
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "modelscope.py").write_text("raise ImportError('as if it were not there')")
    path = f"{checkout.env['PYTHONPATH']}{os.pathsep}{broken}"
    refused = checkout.run("bge-m3", "--source", "modelscope", PYTHONPATH=path)
    assert refused.returncode == 1
    assert "pip install -c constraints.txt modelscope" in refused.stderr
