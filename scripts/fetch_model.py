"""Installs one model under the models folder: the Python half of download-model.sh.

Owns the command line and the move into place. Must not know torch, nor anything of the server
but this: a folder right under the models folder that has a config.json is a model.

Invariant: such a folder appears whole, by one rename, or not at all. Until then its files lie in
`.partial/<name>/`, so what a killed download left is never served and is where the next goes on.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model_choice import DEFAULT_REPO, NameRefused, missing_for_serving, repo_for, revision_for
from model_hubs import FetchFailed, Listing, Origin, bring, explain, is_from_outside, list_files

ROOT = Path(__file__).resolve().parent.parent
RECORD = ".fetched.json"  # in every folder that this script made: where its files came from


@dataclass(frozen=True, slots=True)
class Request:
    origin: Origin
    models_dir: Path

    @property
    def name(self) -> str:
        return self.origin.repo.rpartition("/")[2]

    @property
    def target(self) -> Path:
        return self.models_dir / self.name


def main(argv: Sequence[str]) -> int:
    try:
        request = read_request(argv)
    except NameRefused as error:
        return complain(str(error), 2)
    try:
        print(describe_present(request) or fetch(request))
    except FetchFailed as error:
        return complain(str(error), 1)
    except KeyboardInterrupt:
        return complain("interrupted; the same command goes on from here", 130)
    except Exception as error:
        if not is_from_outside(error):
            raise  # our bug: its traceback is worth more than a tidy line
        return complain(explain(error, request.origin), 1)
    print(f"next: {next_command(request)}")
    return 0


def read_request(argv: Sequence[str]) -> Request:
    parser = argparse.ArgumentParser(
        prog="download-model.sh",
        usage="download-model.sh [MODEL] [--source HUB] [--revision REVISION] [--dir DIR]",
        add_help=False,  # the shell half prints it, also where there is no Python yet
        allow_abbrev=False,
    )
    parser.add_argument("model", nargs="?", default=DEFAULT_REPO)
    parser.add_argument("--source", choices=("huggingface", "modelscope"), default="huggingface")
    parser.add_argument("--revision")
    parser.add_argument("--dir")
    args = parser.parse_args(argv)
    models_dir = args.dir or os.environ.get("EMBEDDING_MODELS_DIR") or ROOT / "models"
    revision = None if args.revision is None else revision_for(args.revision)
    return Request(
        origin=Origin(repo_for(args.model), args.source, revision),
        models_dir=Path(models_dir).expanduser().absolute(),
    )


def describe_present(request: Request) -> str | None:
    """Says that the model is there already; None if it is not. Asks no network."""
    target, origin = request.target, request.origin
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return None
    files = {path.relative_to(target).as_posix(): path for path in target.rglob("*")}
    if RECORD not in files:
        if lacking := missing_for_serving(files):
            raise FetchFailed(f"{target} is there but has no {lacking}; move it away first")
        return f"{target} is there already (not fetched by this script); left as it is"
    record: dict[str, Any] = json.loads(files[RECORD].read_text(encoding="utf-8"))
    if record["repo"] != origin.repo:
        raise FetchFailed(f"{target} holds {record['repo']}; give another folder with --dir")
    if origin.revision not in (None, record["revision"], record["commit"]):
        raise FetchFailed(
            f"{target} holds another revision, {record['commit']}; move it away to get"
            f" {origin.revision}"
        )
    for path, size in record["files"].items():
        if path not in files or files[path].stat().st_size != size:
            raise FetchFailed(f"{target} has lost or changed {path}; move it away and run again")
    return f"{target} is complete already: {origin.repo} at {record['commit']}"


def fetch(request: Request) -> str:
    """Brings the model and moves it into place; returns the line that says so."""
    with only_one(request.models_dir / ".partial" / request.name) as partial:
        listing = list_files(request.origin)
        if lacking := missing_for_serving(file.path for file in listing.files):
            raise FetchFailed(f"{request.origin.repo} has no {lacking}: it cannot be served")
        # A folder for each commit: bytes of two versions never meet in one model.
        staging = partial / f"{request.origin.source}-{listing.commit.replace('/', '_')}"
        announce(request, listing, staging)
        bring(request.origin, listing, staging)
        move_into_place(request, listing, staging)
        shutil.rmtree(partial)
    return f"{request.target} is complete"


@contextmanager
def only_one(partial: Path) -> Iterator[Path]:
    """Holds the folder against a second download of the same model, which would mix its bytes."""
    partial.mkdir(parents=True, exist_ok=True)
    with (partial / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FetchFailed(f"another download of {partial.name} is running") from None
        try:
            yield partial
        finally:
            (partial / "lock").unlink(missing_ok=True)
            for folder in (partial, partial.parent):
                with suppress(OSError):  # not empty: it holds bytes to go on from
                    folder.rmdir()


def announce(request: Request, listing: Listing, staging: Path) -> None:
    """Prints what will be fetched; refuses where the disk is too small for it."""
    print(f"{request.origin.repo} at {listing.commit} from {request.origin.hub}")
    for file in listing.files:
        print(f"  {in_words(file.size):>9}  {file.path}")
    total = sum(file.size or 0 for file in listing.files)
    here = sum(path.stat().st_size for path in staging.rglob("*") if path.is_file())
    print(f"{len(listing.files)} files, {in_words(total)}, to {request.target}")
    if here:
        print(f"going on: {in_words(here)} are here from an earlier run")
    sys.stdout.flush()  # before the progress bars, which go to the other stream
    free = shutil.disk_usage(request.models_dir).free
    if total - here > free:
        raise FetchFailed(f"{request.models_dir} has only {in_words(free)} free")


def move_into_place(request: Request, listing: Listing, staging: Path) -> None:
    """One rename makes the model visible, with its files and nothing that a client left behind."""
    sizes = {file.path: (staging / file.path).stat().st_size for file in listing.files}
    for path in sorted(staging.rglob("*"), reverse=True):  # what is inside a folder comes first
        if not path.is_dir() and path.relative_to(staging).as_posix() not in sizes:
            path.unlink()
        elif path.is_dir() and not any(path.iterdir()):
            path.rmdir()
    record = {
        "source": request.origin.source,
        "repo": request.origin.repo,
        "revision": request.origin.branch,
        "commit": listing.commit,
        "files": sizes,
    }
    (staging / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    staging.rename(request.target)


def next_command(request: Request) -> str:
    folder = ""
    if request.models_dir != ROOT / "models":
        folder = f"EMBEDDING_MODELS_DIR={shlex.quote(str(request.models_dir))} "
    return f"{folder}EMBEDDING_MODEL={request.name} ./serve.sh"


def in_words(size: float | None) -> str:
    if size is None:
        return "?"
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"


def complain(message: str, status: int) -> int:
    print(f"download-model.sh: {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
