"""Which files of a folder belong to the project, and what they hold."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from agents.manifest.written import Fault, Faulty, stays_home

FILE_LIMIT = 4 * 2**20
FOLDER_LIMIT = 16 * 2**20


def read_folder(folder: Path) -> dict[str, bytes]:
    """Every file that belongs to the project: path inside it, with "/", to content.

    Hidden files (.git, .al, .env* …), node_modules and __pycache__ are left out. Raises Faulty for a missing folder,
    links that lead out of it, and what is too large to be sent.
    """
    root = folder.resolve()
    if not root.is_dir():
        raise Faulty([Fault(str(folder), None, "there is no such folder")])
    try:
        files, faults = _read(root)
    except OSError as error:
        raise Faulty([Fault(str(error.filename or folder), None, f"cannot be read: {error.strerror}")]) from error
    if faults:
        raise Faulty(faults)
    return files


def left_behind(folder: Path) -> tuple[Fault, ...]:
    """Warnings about files that mean something to the seed and that `read_folder` never reads."""
    if not (folder / ".env.toml").exists():
        return ()
    message = "is not read, since it belongs to this machine alone: put what the agents need into config.toml"
    return (Fault(".env.toml", None, message),)


def _read(root: Path) -> tuple[dict[str, bytes], list[Fault]]:
    files: dict[str, bytes] = {}
    faults: list[Fault] = []
    total = 0
    for path, problem in _walk(root, root=root, inside=(root,)):
        name = path.relative_to(root).as_posix()
        if problem:
            faults.append(Fault(name, None, problem))
            continue
        total += path.stat().st_size
        if total > FOLDER_LIMIT:
            remedy = "keep large files out of it, or in the image"
            faults.append(Fault(name, None, f"takes the project over {FOLDER_LIMIT} bytes: {remedy}"))
            break
        files[name] = path.read_bytes()
    return files, faults


def _walk(directory: Path, *, root: Path, inside: tuple[Path, ...]) -> Iterator[tuple[Path, str]]:
    """Each file, with what speaks against it: nothing, if empty."""
    for path in sorted(directory.iterdir()):
        if stays_home(path.name):
            continue
        problem = _link_problem(path, root=root, inside=inside) if path.is_symlink() else ""
        if path.is_dir() and not problem:
            yield from _walk(path, root=root, inside=(*inside, path.resolve()))
        else:
            yield path, problem or _file_problem(path)


def _link_problem(link: Path, *, root: Path, inside: tuple[Path, ...]) -> str:
    try:
        target = link.resolve(strict=True)
    except (OSError, RuntimeError):  # nothing is there, or a circle of links
        return "is a link that leads nowhere"
    if not target.is_relative_to(root):
        return "is a link that leaves the folder: put a copy of its target here"
    if any(map(stays_home, target.relative_to(root).parts)):
        return "is a link to something that stays on this machine"
    return "is a link to a folder that it is in" if target in inside else ""


def _file_problem(path: Path) -> str:
    if not path.is_file():
        return "is not a regular file"
    size = path.stat().st_size
    if size > FILE_LIMIT:
        return f"has {size} bytes and a file may have {FILE_LIMIT}: keep it out of the project, or in the image"
    return ""
