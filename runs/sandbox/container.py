"""What every container is given: hardened by default, the same whoever makes it."""

from __future__ import annotations

from django.conf import settings

from runs.sandbox.base import USER, Spec
from runs.sandbox.network import NO_LINK, Link
from runs.sandbox.secrets import CREDENTIALS

LABEL = "agentfleet"
EXTRA_CA = "/etc/agentfleet-extra-ca.crt"
CA_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO", "NODE_EXTRA_CA_CERTS")

# Nothing is mounted over an image's own files. `noexec` where no program ever lies.
_mine = f"uid={USER},gid={USER}"
TMPFS = {
    "/tmp": f"rw,exec,nosuid,size=2g,{_mine},mode=1777",  # noqa: S108 - a mount point
    # Of root, and sticky: what root puts there stays, whatever the sandbox's user does with its own records.
    "/run/agentfleet": f"rw,noexec,nosuid,size=192m,uid=0,gid={USER},mode=1770",
    CREDENTIALS: "rw,noexec,nosuid,nodev,size=32m,mode=0755",
}


def workspace(name: str) -> str:
    """The volume behind /workspace of the sandbox of that name."""
    return f"{name}-workspace"


def run_flags(spec: Spec, host_id: str, link: Link = NO_LINK) -> list[str]:
    """The same container as arguments of `docker run`: for people who want to look, and for the bench's floor."""
    labels = labels_of(spec, host_id)
    flags = [
        "--name",
        spec.name,
        "--user",
        f"{USER}:{USER}",
        "--workdir",
        "/workspace",
        "--init",
        "--read-only",
    ]
    flags += ["--cap-drop", "ALL", "--security-opt", "no-new-privileges:true", "--network", link.mode]
    flags += [f"--add-host={name}:{address}" for name, address in link.hosts.items()]
    flags += [f"--dns={address}" for address in link.dns]
    flags += [f"--dns-option={option}" for option in link.dns_options]
    flags += ["--pids-limit", str(spec.pids), "--memory", spec.memory, "--cpus", str(spec.cpus)]
    flags += ["--cpu-shares", "256", "--oom-score-adj", "500", "--log-driver", "none"]
    if settings.SANDBOX_RUNTIME:
        flags += ["--runtime", settings.SANDBOX_RUNTIME]
    if settings.EXTRA_CA_FILE:
        flags += ["--mount", f"type=bind,source={settings.EXTRA_CA_FILE},target={EXTRA_CA},readonly"]
    flags += [f"--tmpfs={path}:{options}" for path, options in TMPFS.items()]
    volume = [f"volume-label={key}={value}" for key, value in labels.items()]
    flags += ["--mount", ",".join([f"type=volume,source={workspace(spec.name)},target=/workspace", *volume])]
    flags += [f"--label={key}={value}" for key, value in labels.items()]
    return [*flags, *(f"--env={key}={value}" for key, value in environment(spec).items())]


def environment(spec: Spec) -> dict[str, str]:
    places = {"HOME": "/tmp", "AL_SIGNAL_DIR": "/tmp/signals", "AL_CREDENTIALS_PATH": CREDENTIALS}  # noqa: S108
    environment = places | dict(spec.env)
    if settings.EXTRA_CA_FILE:
        for name in CA_VARIABLES:
            environment.setdefault(name, EXTRA_CA)
    return environment


def labels_of(spec: Spec, host_id: str) -> dict[str, str]:
    return {f"{LABEL}.fleet": settings.FLEET, f"{LABEL}.host": host_id, **spec.labels}
