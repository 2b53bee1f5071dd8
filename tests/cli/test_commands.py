"""`embedding verify` and `embedding models` as commands: exit codes, tables, a running server."""

from __future__ import annotations

import json
import logging
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from bench.random_models import build
from cli.models import Listing, as_json, as_table, ask_server, list_folder, server_url, show_models
from cli.verify import verify_model
from embedding import main
from engine.folder.store import STAND_IN
from serving.configuration import read_settings
from tests.servers import ROOT, Server, clean_environment, free_port, start_server

GOOD = ("tiny-bert", "tiny-bge-m3", "tiny-bge-reranker")


# Commands one after the other in one process, which imports torch once: arguments and variables in,
# exit code, stdout and stderr out.
_MANY = """
import contextlib, io, json, os, sys
from cli.verify import verify_model
from embedding import main
for arguments, variables in json.load(sys.stdin):
    os.environ.update(variables)
    sys.argv = ["embedding", *arguments]
    out, error, code = io.StringIO(), io.StringIO(), None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        try:
            main()
        except SystemExit as ended:
            code = ended.code
    print(json.dumps([code, out.getvalue(), error.getvalue()]))
    for name in variables:
        del os.environ[name]
"""


def in_a_process(
    *arguments: str, text: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        input=text,
        cwd=ROOT,
        env=clean_environment({"PYTHONUTF8": "1", **environment}),
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )


def one_by_one(
    models_dir: Path, *commands: tuple[list[str], dict[str, str]]
) -> list[tuple[int, str, str]]:
    text = json.dumps(commands)
    run = in_a_process("-c", _MANY, text=text, EMBEDDING_MODELS_DIR=str(models_dir))
    assert run.returncode == 0, run.stderr
    return [tuple(json.loads(line)) for line in run.stdout.splitlines()]


@pytest.fixture(scope="module")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three models, and three folders that cannot be served."""
    folder = tmp_path_factory.mktemp("models")
    for name in GOOD:
        build(name, folder)
    no_weights, no_json, cut = (folder / name for name in ("no-weights", "no-json", "cut-short"))
    for broken in (no_weights, no_json, cut):
        shutil.copytree(folder / "tiny-bert", broken)
    (no_weights / "model.safetensors").unlink()
    (no_json / "config.json").write_text("{", "utf-8")
    weights = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(weights[:-4])
    return folder


def test_minilms_published_similarities_agree(tmp_path: Path) -> None:
    run = in_a_process("-m", "embedding", "verify", STAND_IN, EMBEDDING_MODELS_DIR=str(tmp_path))
    assert run.returncode == 0, run.stdout + run.stderr
    assert "https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2" in run.stdout
    assert run.stdout.splitlines()[-1] == "all 9 values agree"
    assert run.stderr == ""


@pytest.fixture(scope="module")
def runs(models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[int, str, str]]:
    """MiniLM pooled wrong; tiny-bert recorded, compared, and compared with another pooling file."""
    folder = tmp_path_factory.mktemp("recorded")
    shutil.copytree(models_dir / "tiny-bert", folder / "right/mine")
    shutil.copytree(models_dir / "tiny-bert", folder / "wrong/mine")
    pooling = folder / "wrong/mine/1_Pooling/config.json"
    switches = json.loads(pooling.read_text("utf-8"))
    switches |= {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
    pooling.write_text(json.dumps(switches), "utf-8")
    answers = str(folder / "answers.json")
    return one_by_one(
        folder / "right",
        (["verify", STAND_IN], {"EMBEDDING_POOLING": "cls"}),
        (["verify", "mine", "--record", answers], {}),
        (["verify", "mine", "--examples", answers], {}),
        (["verify", str(folder / "wrong/mine"), "--examples", answers], {}),
        (["verify", str(models_dir / "cut-short"), "--examples", answers], {}),
    )


def test_minilm_with_another_pooling_fails_and_shows_expected_and_got(
    runs: list[tuple[int, str, str]],
) -> None:
    code, out, _ = runs[0]
    assert code == 1
    assert "pooling    cls (setting EMBEDDING_POOLING)" in out
    (row,) = [line.split() for line in out.splitlines() if line.startswith("dense q1p3")]
    assert (row[2], row[-1]) == ("0.1046", "DIFFERS")
    assert float(row[3]) > 0.5
    assert out.splitlines()[-1] == "6 of 9 values differ"


def test_a_recorded_model_passes(runs: list[tuple[int, str, str]]) -> None:
    assert (runs[1][0], runs[1][2]) == (0, "")
    assert runs[1][1].startswith("recorded 10 answers of mine in ")
    code, out, error = runs[2]
    assert (code, error) == (0, "")
    assert out.splitlines()[-1] == "all 10 values agree"


def test_a_recorded_model_fails_once_its_pooling_file_says_otherwise(
    runs: list[tuple[int, str, str]],
) -> None:
    code, out, _ = runs[3]
    assert code == 1
    assert "pooling was 'cls' when recorded, is 'mean'" in out
    assert out.splitlines()[-1] == "10 of 10 values differ"


def test_weights_that_cannot_be_loaded_end_with_1_and_the_reason(
    runs: list[tuple[int, str, str]],
) -> None:
    code, out, error = runs[4]
    assert (code, out) == (1, "")
    assert "cut-short" in error


@pytest.fixture
def here(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., tuple[int, str]]]:
    """The command in this process, for what ends before torch is needed: exit code, stderr."""
    logger = logging.getLogger("embedding")
    before = logger.handlers[:], logger.propagate, logger.level

    def run(*arguments: str, **environment: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["embedding", *arguments])
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as ended:
            main()
        out, error = capsys.readouterr()
        assert out == ""
        return int(ended.value.code or 0), error

    yield run
    logger.handlers[:], logger.propagate, logger.level = before


@pytest.mark.parametrize(
    ("model", "reason"),
    [("nowhere", "nowhere: no folder of that name"), ("no-weights", "no-weights: no weights")],
)
def test_a_model_that_cannot_be_loaded_ends_with_1_and_the_reason(
    model: str, reason: str, here: Callable[..., tuple[int, str]], models_dir: Path
) -> None:
    code, error = here(
        "verify", model, "--record", "answers.json", EMBEDDING_MODELS_DIR=str(models_dir)
    )
    assert code == 1
    assert reason in error


def test_a_model_with_nothing_published_ends_with_2_and_names_the_way(
    here: Callable[..., tuple[int, str]], models_dir: Path
) -> None:
    code, error = here("verify", "tiny-bert", EMBEDDING_MODELS_DIR=str(models_dir))
    assert code == 2
    assert "nothing is published for tiny-bert" in error
    assert "--record FILE" in error
    assert "--examples FILE" in error


def test_a_wrong_file_ends_with_2_naming_file_and_key(
    here: Callable[..., tuple[int, str]], models_dir: Path, tmp_path: Path
) -> None:
    path = tmp_path / "answers.json"
    path.write_text('{"version": 1, "model": "m", "decisions": {}, "texts": [{}]}', "utf-8")
    arguments = ("verify", "tiny-bert", "--examples", str(path))
    code, error = here(*arguments, EMBEDDING_MODELS_DIR=str(models_dir))
    assert (code, error) == (2, f"{path}: texts[0].text: is missing\n")


def test_a_record_into_a_folder_that_is_not_there_ends_with_2(
    here: Callable[..., tuple[int, str]], models_dir: Path
) -> None:
    arguments = ("verify", "tiny-bert", "--record", "no/such/answers.json")
    code, error = here(*arguments, EMBEDDING_MODELS_DIR=str(models_dir))
    assert code == 2
    assert "there is no folder no/such" in error


@pytest.mark.parametrize("arguments", [["verify", STAND_IN], ["models"]])
def test_a_bad_setting_ends_with_2_and_is_named(
    arguments: list[str], here: Callable[..., tuple[int, str]]
) -> None:
    code, error = here(*arguments, EMBEDDING_DTYPE="int3")
    assert code == 2
    assert "EMBEDDING_DTYPE" in error


def test_an_unknown_command_ends_with_2_and_names_those_there_are(
    here: Callable[..., tuple[int, str]],
) -> None:
    code, error = here("unknown")
    assert code == 2
    assert all(f"\n  {command} " in error for command in ("serve", "models", "verify"))


@pytest.mark.parametrize(
    "arguments", [[], ["a", "b"], ["a", "--record", "x", "--examples", "y"], ["a", "--nothing"]]
)
def test_bad_usage_of_verify_ends_with_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        verify_model(arguments)
    assert ended.value.code == 2
    assert "usage: embedding verify" in capsys.readouterr().err


def test_help_names_the_flags_and_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    for command, words in (
        (verify_model, ("MODEL", "--examples FILE", "--record FILE", "Exit code 0")),
        (show_models, ("--json", "EMBEDDING_PORT")),
    ):
        with pytest.raises(SystemExit) as ended:
            command(["--help"])
        assert ended.value.code == 0
        text = capsys.readouterr().out
        assert all(word in text for word in words)


def listing(models_dir: Path, port: int, **settings: str) -> Listing:
    return list_folder(read_settings(models_dir=models_dir, port=port, **settings))


def test_models_are_listed_with_what_was_decided_and_why_others_are_not_served(
    models_dir: Path,
) -> None:
    port = free_port()
    found = listing(models_dir, port)
    text = as_table(found)
    lines = {line.split()[0]: line for line in text.splitlines() if line}
    assert "cls (1_Pooling/config.json)" in lines["tiny-bert"]
    assert "dense,sparse,colbert" in lines["tiny-bge-m3"]
    assert "cross-encoder" in lines["tiny-bge-reranker"]
    assert all(lines[name].endswith("  ?") for name in GOOD)
    assert f"no server answers at http://127.0.0.1:{port}" in text
    reasons = text.partition("cannot be served:")[2]
    for reason in ("no-weights: no weights", "cut-short/model.safetensors: cut short", "no-json"):
        assert reason in reasons
    assert str(models_dir) not in reasons


def test_sizes_are_those_of_the_weights(models_dir: Path) -> None:
    rows = {row.name: row for row in listing(models_dir, free_port()).models}
    for name, file in (("tiny-bert", "model.safetensors"), ("tiny-bge-m3", "pytorch_model.bin")):
        num_bytes = (models_dir / name / file).stat().st_size
        assert rows[name].num_bytes == num_bytes
        assert rows[name].num_parameters == pytest.approx(num_bytes / 4, rel=0.05)
    assert (rows["tiny-bert"].dim, rows["tiny-bert"].max_length) == (32, 64)


def test_models_is_a_command_that_prints_json_and_loads_no_torch(models_dir: Path) -> None:
    code = (
        "import embedding, sys; sys.argv = ['embedding', 'models', '--json']\n"
        "try: embedding.main()\n"
        "finally: assert 'torch' not in sys.modules"
    )
    port = str(free_port())
    settings = {"EMBEDDING_MODELS_DIR": str(models_dir), "EMBEDDING_PORT": port}
    run = in_a_process("-c", code, **settings)
    assert (run.returncode, run.stderr) == (0, "")
    answer = json.loads(run.stdout)
    assert {row["name"] for row in answer["models"] if not row["reason"]} == set(GOOD)
    assert answer["server_answers"] is False


def test_an_empty_folder_lists_the_stand_in_and_says_how_to_get_a_model(tmp_path: Path) -> None:
    found = listing(tmp_path, free_port())
    assert [row.name for row in found.models] == [STAND_IN]
    assert "./download-model.sh" in as_table(found)


def test_models_named_by_the_setting_come_first_even_from_elsewhere(
    models_dir: Path, tmp_path: Path
) -> None:
    elsewhere = build("tiny-bert", tmp_path / "elsewhere")
    found = listing(models_dir, free_port(), model=f"{elsewhere},tiny-bge-reranker")
    names = [row.name for row in found.models]
    assert names[:2] == ["tiny-bert", "tiny-bge-reranker"]
    assert found.models[0].path == str(elsewhere.resolve())
    missing = listing(models_dir, free_port(), model="nowhere")
    assert any("nowhere" in note for note in missing.notes)
    assert len(missing.models) == len(names)


@pytest.fixture(scope="module")
def server(models_dir: Path) -> Iterator[Server]:
    folder = str(models_dir)
    with start_server(EMBEDDING_MODELS_DIR=folder, EMBEDDING_MODEL="tiny-bert") as running:
        yield running


def test_a_running_server_says_which_models_it_has_in_memory(
    server: Server, models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # never used for one's own server
    assert server.embed({"model": "tiny-bge-m3", "input": "hello"}).status_code == 200
    found = listing(models_dir, server.port)
    held = {row.name: row.in_memory for row in found.models if not row.reason}
    assert held == {"tiny-bert": "pinned", "tiny-bge-m3": "yes", "tiny-bge-reranker": "no"}
    assert (found.server_answers, found.notes) == (True, [])
    assert json.loads(as_json(found))["server"] == server.url


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("0.0.0.0", "http://127.0.0.1:80"),
        ("::", "http://[::1]:80"),
        ("::1", "http://[::1]:80"),
        ("10.0.0.7", "http://10.0.0.7:80"),
        ("localhost", "http://localhost:80"),
    ],
)
def test_a_server_that_listens_everywhere_is_asked_on_this_machine(host: str, url: str) -> None:
    assert server_url(host, 80) == url


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (503, b"{}", "answers 503"),
        (200, b"<html>", "another server"),
        (200, b"[]", "another server"),
        (200, b'{"models": [{"name": 1}]}', "another server"),
    ],
)
def test_another_servers_answer_is_no_answer(status: int, body: bytes, reason: str) -> None:
    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            """Not into the tests' output."""

    with HTTPServer(("127.0.0.1", 0), Other) as other:
        thread = threading.Thread(target=other.handle_request)
        thread.start()
        in_memory, why = ask_server(f"http://127.0.0.1:{other.server_port}")
        thread.join()
    assert in_memory is None
    assert reason in why


def test_a_server_that_never_answers_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        in_memory, why = ask_server(f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert in_memory is None
    assert "no server answers" in why
