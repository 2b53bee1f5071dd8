"""Lists a model's files at a hub and brings them into a folder, going on after a kill.

Owns everything that is said to Hugging Face (and its mirrors) and to ModelScope. Must not know
where models live, nor when one counts as installed: it fills the folder that it is given.

Invariant: a file carries its own name only once it is whole and its checksum was right; before
that its name ends in `.part`.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from model_choice import needed_files

_NETWORK_PACKAGES = {"httpx", "httpx2", "requests", "urllib3", "modelscope", "modelscope_hub"}


class FetchFailed(Exception):
    """The model is not there, and why; the message is for the person at the terminal."""


@dataclass(frozen=True, slots=True)
class Origin:
    repo: str  # org/name
    source: str  # huggingface or modelscope
    revision: str | None

    @property
    def branch(self) -> str:
        """What is asked for where no revision is named: each hub has its own word."""
        return self.revision or ("master" if self.source == "modelscope" else "main")

    @property
    def hub(self) -> str:
        """The hub's address, as far as this script knows it."""
        if self.source == "modelscope":
            return os.environ.get("MODELSCOPE_ENDPOINT", "ModelScope")
        return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


@dataclass(frozen=True, slots=True)
class RemoteFile:
    path: str
    size: int | None
    checksum: str | None  # SHA-256 of a large file (64 digits), git's SHA-1 of a small one (40)


@dataclass(frozen=True, slots=True)
class Listing:
    commit: str  # ModelScope tells none for a branch: there it is the branch
    files: tuple[RemoteFile, ...]  # only those that serving needs


def list_files(origin: Origin) -> Listing:
    return _list_modelscope(origin) if origin.source == "modelscope" else _list_hub(origin)


def bring(origin: Origin, listing: Listing, folder: Path) -> None:
    """Fills the folder with the listed files; raises FetchFailed or the client's own error."""
    if origin.source == "modelscope":
        _bring_from_modelscope(origin, listing, folder)
        return
    for file in listing.files:
        _bring_file(origin, listing.commit, file, folder)


def _list_hub(origin: Origin) -> Listing:
    from huggingface_hub import HfApi

    api = HfApi(endpoint=origin.hub)
    info = api.model_info(origin.repo, revision=origin.branch, files_metadata=True)
    files = {sibling.rfilename: sibling for sibling in info.siblings or ()}
    return Listing(
        commit=info.sha or origin.branch,
        files=tuple(
            RemoteFile(
                path=path,
                size=files[path].size,
                # A large file's blob is only a pointer: its own SHA-256 stands beside it.
                checksum=files[path].lfs.sha256 if files[path].lfs else files[path].blob_id,
            )
            for path in needed_files(files)
        ),
    )


def _bring_file(origin: Origin, commit: str, file: RemoteFile, folder: Path) -> None:
    """Brings one file, from the byte at which an earlier run stopped.

    huggingface_hub's own download calls begin a file anew after a kill (each process writes to a
    fresh temporary name), so only its transfer of one address is used here. That writes in steps
    of 10 MiB: the most that a kill can cost.
    """
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    final = folder / file.path
    if final.exists():
        return
    final.parent.mkdir(parents=True, exist_ok=True)
    part = final.with_name(final.name + ".part")
    have = part.stat().st_size if part.exists() else 0
    if file.size is None or have > file.size:
        part.unlink(missing_ok=True)  # without a size, a part cannot be told from a whole
        have = 0
    with part.open("ab") as out:
        http_get(
            hf_hub_url(origin.repo, file.path, revision=commit, endpoint=origin.hub),
            out,
            resume_size=have,
            # Bytes that are compressed on the way cannot be counted, so not resumed either.
            headers={**build_hf_headers(), "Accept-Encoding": "identity"},
            expected_size=file.size,
            displayed_filename=file.path,
        )
    if not _checksum_holds(part, file.checksum):
        part.unlink()
        raise FetchFailed(f"{file.path} arrived damaged and was dropped; run the command again")
    part.rename(final)


def _checksum_holds(path: Path, expected: str | None) -> bool:
    if expected is None:
        return True  # some mirrors tell none; the size was right
    if len(expected) == 64:
        digest = hashlib.sha256()
    else:
        digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as content:
        while chunk := content.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest() == expected


def _list_modelscope(origin: Origin) -> Listing:
    try:
        from modelscope.hub.api import HubApi
    except ImportError:
        command = f"{shlex.quote(sys.executable)} -m pip install -c constraints.txt modelscope"
        raise FetchFailed(f"--source modelscope needs its package: {command}") from None
    listed = HubApi().get_model_files(origin.repo, revision=origin.branch, recursive=True)
    sizes = {str(entry["Path"]): int(entry["Size"]) for entry in listed}
    files = (RemoteFile(path, sizes[path], None) for path in needed_files(sizes))
    return Listing(commit=origin.branch, files=tuple(files))


def _bring_from_modelscope(origin: Origin, listing: Listing, folder: Path) -> None:
    """Its own client goes on after a kill and compares checksums; sizes are compared here."""
    from modelscope.hub.snapshot_download import snapshot_download

    snapshot_download(
        origin.repo,
        revision=listing.commit,
        local_dir=str(folder),
        allow_patterns=[file.path for file in listing.files],
    )
    for file in listing.files:
        path = folder / file.path
        if not path.is_file() or path.stat().st_size != file.size:
            raise FetchFailed(f"{file.path} did not arrive whole; run the command again")


def is_from_outside(error: Exception) -> bool:
    """True for the network, the hub and the disk; False for a mistake of ours."""
    packages = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    return isinstance(error, OSError) or bool(packages & _NETWORK_PACKAGES)


def explain(error: Exception, origin: Origin) -> str:
    """One line about an error from outside, and what to do."""
    from huggingface_hub import errors

    token = "export HF_TOKEN=... with the token of an account that may read it"
    if isinstance(error, errors.GatedRepoError):
        page = f"{origin.hub}/{origin.repo}"
        return f"{origin.repo} is gated: accept its terms at {page}, then {token}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"{origin.hub} has no model {origin.repo}; if it is private, {token}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{origin.repo} has no revision {origin.revision}"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE forbids it; unset it for this command"
    advice = "The same command goes on from here."
    if origin.source == "huggingface" and "HF_ENDPOINT" not in os.environ:
        advice += " Where this hub is out of reach, set HF_ENDPOINT=https://hf-mirror.com"
        advice += " or use --source modelscope."
    first_line = str(error).strip().partition("\n")[0]
    return f"{origin.hub}: {type(error).__name__}: {first_line}. {advice}"
