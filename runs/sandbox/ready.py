"""The last layer of every image, made once: the commands in /app/bin, and a /workspace of the sandbox's user."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

from runs.sandbox.base import USER

LABEL = "agentfleet.ready"  # on images that have the layer: the version of it
BIN = Path(__file__).with_name("image") / "bin"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"  # where an image names none, as the engine has it
SETTLE = (
    f"mkdir -p /workspace && chown {USER}:{USER} /workspace && "
    "if [ ! -e /app/static ]; then ln -s /workspace /app/static; fi"
)


def version() -> str:
    """Changes with the recipe and with every script."""
    digest = hashlib.sha256(f"{SETTLE}\n{PATH}".encode())
    for script in _scripts():
        digest.update(f"\0{script.name}\0".encode() + script.read_bytes())
    return digest.hexdigest()[:16]


def context(image_id: str, env: Sequence[str], labels: dict[str, str]) -> bytes:
    """A tar to build the layer from, on an image whose own environment is `env` (`NAME=value`)."""
    path = next((line.removeprefix("PATH=") for line in env if line.startswith("PATH=")), "") or PATH
    folders = [folder for folder in path.split(":") if folder != "/app/bin"]
    recipe = [
        f"FROM {image_id}",
        "USER 0:0",
        "COPY bin/ /app/bin/",
        f'RUN ["/bin/sh", "-c", "{SETTLE}"]',
        f"ENV PATH=/app/bin:{':'.join(folders)}",
        f"LABEL {' '.join(f'{name}={value}' for name, value in labels.items())}",
    ]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        _add(tar, "Dockerfile", "\n".join(recipe).encode())
        folder = tarfile.TarInfo("bin")
        folder.type, folder.mode = tarfile.DIRTYPE, 0o755
        tar.addfile(folder)
        for script in _scripts():
            _add(tar, f"bin/{script.name}", script.read_bytes())
    return buffer.getvalue()


def _scripts() -> list[Path]:
    return sorted(BIN.iterdir()) if BIN.is_dir() else []


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), 0o755
    tar.addfile(entry, io.BytesIO(content))
