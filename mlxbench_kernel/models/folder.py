"""The folder of a model: found, checked before anything is loaded, and compared between hosts."""

from __future__ import annotations

import hashlib
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from mlxbench_kernel.errors import UsageError
from mlxbench_kernel.memory.fit.headers import INDEX, read_config, read_headers
from mlxbench_kernel.models.downloading import Tell, downloading

# What mlx-lm saves of an adapter.
ADAPTER = ("adapter_config.json", "adapters.safetensors")
# One of them holds the vocabulary (transformers 5.24; tiktoken's own).
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tiktoken.model", "vocab.json")
# What else decides which tokens a prompt has, and which of them end a text: ranks that differ in
# that would wait for one another (mlx-lm 0.32.2, transformers 5.24).
DECIDING = (
    "generation_config.json", "tokenizer_config.json", "chat_template.jinja", "chat_template.json",
    "special_tokens_map.json", "added_tokens.json", "merges.txt",
)  # fmt: skip


def find(path_or_repo: str, revision: str | None = None, tell: Tell | None = None) -> Path:
    """The folder of a model; one of a hub is downloaded with mlx-lm's own downloader.

    That asks nobody where ``HF_HUB_OFFLINE=1`` is set, and then finds what was downloaded before.
    `tell` hears how far a download is, see `downloading`.

    Raises
    ------
    UsageError
        There is no such folder, and no such model could be downloaded.
    """
    path = Path(path_or_repo).expanduser()
    if path.is_dir():
        return path.resolve()
    if path.exists():
        raise UsageError(f"{path_or_repo} is a file: give the folder with its config.json")
    if path_or_repo.count("/") != 1 or path_or_repo.startswith((".", "/", "~")):
        raise UsageError(
            f"there is no folder {path_or_repo}: give the folder of a model, or its name on the "
            "hub, as mlx-community/NAME"
        )
    from mlx_lm import utils

    download: Any = utils._download
    try:
        with nullcontext() if tell is None else downloading(path_or_repo, revision, tell):
            return Path(download(path_or_repo, revision=revision))
    except Exception as error:  # of the hub's library, and of what it is built on
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
        fix = (
            "HF_HUB_OFFLINE is set: unset it, or give a folder"
            if offline
            else "look at the name and the network, or give a folder"
        )
        raise UsageError(f"{path_or_repo} could not be downloaded ({line}): {fix}") from error


def check(folder: Path) -> dict[str, Any]:
    """Look at a folder before anything of it is loaded.

    Returns
    -------
    dict
        Its config.

    Raises
    ------
    UsageError
        It has no config or tokenizer, or weights that are missing, corrupt or cut short.
    """
    try:
        config = read_config(folder)
        read_headers(folder)
    except UsageError as error:
        raise UsageError(str(error).removeprefix("FitPlan: ")) from error
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise UsageError(
            f"there is no tokenizer in {folder} (none of {', '.join(TOKENIZERS)}): copy it there "
            "from where the model is from"
        )
    return config


def digests(folder: Path) -> dict[str, str]:
    """What tells the files of two hosts apart, by file, without reading weights.

    SHA-256 of ``config.json``, the index, the tokenizer and what belongs to it, and of each file of
    weights its header and size.
    """
    found = {}
    for name in ("config.json", INDEX, *TOKENIZERS, *DECIDING):
        if (folder / name).is_file():
            found[name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    for file in sorted(folder.glob("model*.safetensors")):
        with file.open("rb") as opened:
            size = int.from_bytes(opened.read(8), "little")
            header = hashlib.sha256(opened.read(size)).hexdigest()
        found[file.name] = f"{header} {file.stat().st_size}"
    return found


def digests_of_adapter(folder: Path) -> dict[str, str]:
    """Likewise of an adapter's folder, by path: SHA-256 of all of its files that are read."""
    found = {}
    for file in (folder / name for name in ADAPTER):
        if file.is_file():
            with file.open("rb") as opened:
                found[str(file)] = hashlib.file_digest(opened, "sha256").hexdigest()
    return found
