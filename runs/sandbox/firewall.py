"""The host filter of sandbox networks: from such a bridge the gateway's port of this host is reached, and no other.

An internal bridge alone reaches every listener of the host. The rules are in chains of our own, one for what is meant
for the host and one for what is to be forwarded, jumped to before any rule that is not ours.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from runs.sandbox.base import EngineDown, Refused

SECONDS = 10  # that a program may take, of which it waits for the lock on the rules
WAIT = "5"
OURS = re.compile(r"-A \S+ -i af[go]-[0-9a-f]{10} -j AGENTFLEET-\S+")
LINK_LOCAL = "169.254.0.0/16"  # where clouds answer who the host is
BRIDGED = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
IPV6 = Path("/proc/net/if_inet6")


@dataclass(frozen=True)
class Filter:
    """The rules of one bridge, 14 characters long as in `network.bridge_of`."""

    bridge: str
    address: str  # of the host on it, where the gateway listens
    port: int
    outward: bool = False  # what is meant for others than the host, a neighbour or link-local goes its way

    @property
    def inward_chain(self) -> str:
        return f"AGENTFLEET-{self.bridge}-IN"  # with 28 characters as long as such a name may be

    @property
    def onward_chain(self) -> str:
        return f"AGENTFLEET-{self.bridge}-FW"


@dataclass(frozen=True)
class Family:
    """IPv4 or IPv6: its programs, and the chain that sees first what is forwarded."""

    program: str
    onward: str
    unreachable: str

    @property
    def refuse(self) -> list[str]:
        """A reset is at once; of the other answers the kernel sends one a second, and the rest would hang."""
        return ["-p tcp -j REJECT --reject-with tcp-reset", f"-j REJECT --reject-with {self.unreachable}"]


V4 = Family("iptables", "DOCKER-USER", "icmp-port-unreachable")
V6 = Family("ip6tables", "FORWARD", "icmp6-port-unreachable")


def ensure(wanted: Filter) -> bool:
    """Set the filter, unless it stands: False. Raises EngineDown, or Refused with a sentence that says what to do."""
    if not Path("/sys/class/net", wanted.bridge).exists():
        raise Refused(_sentence(f"its bridge {wanted.bridge} is not on this machine"))
    if not BRIDGED.exists() or BRIDGED.read_text().strip() != "1":
        raise Refused(_sentence("neighbours on a bridge are not filtered: sysctl net.bridge.bridge-nf-call-iptables=1"))
    tables = [(family, _standing(family)) for family in _families()]
    missing = [(family, standing) for family, standing in tables if not _stands(wanted, family, standing)]
    for family, standing in missing:
        _restore(family, [*_chains(wanted, family), *_jumps(wanted, family, standing)])
    return bool(missing)


def remove(bridge: str) -> None:
    """Remove all rules of the bridge; none is fine. Raises Refused, EngineDown."""
    gone = Filter(bridge, "", 0)
    for family in _families():
        standing = _standing(family)
        chains = [chain for chain in (gone.inward_chain, gone.onward_chain) if f"-N {chain}" in standing]
        dropped = [
            line.replace("-A ", "-D ", 1) for line in standing if line.endswith(tuple(f"-j {c}" for c in chains))
        ]
        if chains:
            _restore(family, [*dropped, *(f"-F {chain}" for chain in chains), *(f"-X {chain}" for chain in chains)])


def _families() -> list[Family]:
    return [V4, V6] if IPV6.exists() else [V4]


def _rules(wanted: Filter, family: Family) -> dict[str, list[str]]:
    """Each chain's, in order, as the program lists them."""
    inward = onward = family.refuse
    if family is V4:
        inward = [f"-d {wanted.address}/32 -p tcp -m tcp --dport {wanted.port} -j ACCEPT", *family.refuse]
    if family is V4 and wanted.outward:
        onward = [f"{to} {rule}" for to in (f"-o {wanted.bridge}", f"-d {LINK_LOCAL}") for rule in family.refuse]
    chains = {wanted.inward_chain: inward, wanted.onward_chain: onward}
    return {chain: [f"-A {chain} {rule}" for rule in rules] for chain, rules in chains.items()}


def _parents(wanted: Filter, family: Family) -> dict[str, str]:
    """The jump of each of the chains that are not ours."""
    return {
        "INPUT": f"-i {wanted.bridge} -j {wanted.inward_chain}",
        family.onward: f"-i {wanted.bridge} -j {wanted.onward_chain}",
    }


def _stands(wanted: Filter, family: Family, standing: Sequence[str]) -> bool:
    return all(
        [line for line in standing if line.startswith(f"-A {chain} ")] == rules
        for chain, rules in _rules(wanted, family).items()
    ) and all(f"-A {parent} {jump}" in _first(parent, standing) for parent, jump in _parents(wanted, family).items())


def _first(parent: str, standing: Sequence[str]) -> list[str]:
    """The rules of a chain before the first that is not ours."""
    ours = []
    for line in standing:
        if line.startswith(f"-A {parent} "):
            if not OURS.fullmatch(line):
                break
            ours.append(line)
    return ours


def _chains(wanted: Filter, family: Family) -> list[str]:
    """To name a chain is to make or to empty it."""
    chains = _rules(wanted, family)
    return [*(f":{chain} - [0:0]" for chain in chains), *(rule for rules in chains.values() for rule in rules)]


def _jumps(wanted: Filter, family: Family, standing: Sequence[str]) -> list[str]:
    lines = []
    for parent, jump in _parents(wanted, family).items():
        if f"-P {parent}" not in " ".join(standing) and f"-N {parent}" not in standing:
            raise Refused(_sentence(f"there is no chain {parent}: the engine must run with its own iptables rules on"))
        lines += [f"-D {parent} {jump}"] * standing.count(f"-A {parent} {jump}")
        lines.append(f"-I {parent} 1 {jump}")
    return lines


def _standing(family: Family) -> list[str]:
    return _run(family.program, ["-w", WAIT, "-S"]).splitlines()


def _restore(family: Family, lines: Sequence[str]) -> None:
    """All of it at once, or nothing."""
    _run(f"{family.program}-restore", ["-w", WAIT, "--noflush"], "\n".join(["*filter", *lines, "COMMIT", ""]))


def _run(program: str, words: Sequence[str], stdin: str = "") -> str:
    """Raises Refused, EngineDown."""
    found = shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if found is None:
        raise Refused(_sentence(f"there is no {program} on this host: install it"))
    try:
        done = subprocess.run(
            [found, *words], input=stdin, capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:  # a busy host, or we were stopped meanwhile: that passes
        raise EngineDown(f"{program} of this host did not end within {SECONDS} s") from error
    if done.returncode != 0:
        raise Refused(_sentence(f"{program}: {done.stderr.strip()}"))
    return done.stdout


def _sentence(why: str) -> str:
    return (
        f"the host filter of sandbox networks cannot be set ({why}); run the worker as root or with CAP_NET_ADMIN "
        'on the machine of the container engine, or give the agent network = "none"'
    )
