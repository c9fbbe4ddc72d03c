"""Network policies of sandboxes, carried out or refused, never widened."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests.exceptions
from django.conf import settings

from agents import private_files
from runs.sandbox import firewall
from runs.sandbox.base import Refused, SandboxError

log = logging.getLogger(__name__)

CHECKED_FOR = 5.0  # seconds that a look at network and filter holds good
NEVER = float("-inf")
LETTERS = {"gateway": "g", "open": "o"}  # of the policies that have a bridge
BRIDGE_NAME = "com.docker.network.bridge.name"


@dataclass(frozen=True)
class Link:
    """What a container is given of a network, in the engine's words."""

    mode: str = "none"
    hosts: Mapping[str, str] = field(default_factory=dict)  # name -> address
    dns: Sequence[str] = ()  # none: as on the host
    dns_options: Sequence[str] = ()


NO_LINK = Link()
# Engines before 23 do not answer at all for what their resolver cannot ask: that is to be known soon.
WITHOUT_NAMES = {"dns": ["127.0.0.1"], "dns_options": ["timeout:1", "attempts:1"]}  # the sandbox's own loopback


def name_of(policy: str, host_id: str) -> str:
    return f"agentfleet-{host_id}" + ("" if policy == "gateway" else f"-{policy}")


def bridge_of(policy: str, host_id: str) -> str:
    """A name of an interface has at most 15 characters."""
    return f"af{LETTERS[policy]}-{hashlib.sha256(host_id.encode()).hexdigest()[:10]}"


class Networks:
    """The bridges of one installation on this host, made when a sandbox first needs them."""

    def __init__(self, host_id: str) -> None:
        self._host_id = host_id
        self._lock = threading.Lock()
        self._adopted = False
        self._links: dict[str, tuple[float, Link]] = {}  # policy -> when it was looked at, and what was found

    def link(self, policy: str, client: Any) -> Link:
        """Raises Refused with a sentence."""
        if policy == "none":
            return NO_LINK
        _refuse_unknown(policy)
        with self._lock:
            return self._fresh(policy, client)

    def try_out(self, policy: str, client: Any) -> None:
        """Make a network of that policy and its filter, and remove both. Raises Refused with a sentence."""
        if policy == "none":
            return
        _refuse_unknown(policy)
        with contextlib.ExitStack() as undo:
            facts = self._made(policy, client)
            undo.callback(firewall.remove, bridge_of(policy, self._host_id))
            undo.callback(_removed, client, name_of(policy, self._host_id))
            firewall.ensure(self._filter(policy, facts))

    def keep(self, client: Any) -> None:
        """See that the filters of the networks in use still stand. Raises Refused."""
        with self._lock:
            if not self._links:
                self._adopt(client)
            stale = [policy for policy, (seen_at, _) in self._links.items() if not _holds(seen_at)]
            for policy in stale:
                if _found(client, name_of(policy, self._host_id)) is None:
                    del self._links[policy]
                else:
                    self._fresh(policy, client)

    def forget(self) -> None:
        """Look again before the next use."""
        with self._lock:
            self._links = {policy: (NEVER, link) for policy, (_, link) in self._links.items()}

    def remove(self, client: Any) -> None:
        """Remove those without a container, and their filters. Nothing of ours is left if all are."""
        with self._lock:
            self._links.clear()
            for policy in LETTERS:
                if _removed(client, name_of(policy, self._host_id)):
                    firewall.remove(bridge_of(policy, self._host_id))
            self._publish(client)

    def _adopt(self, client: Any) -> None:
        """What an earlier process of this host has left, once: sandboxes may stand on it."""
        if not self._adopted:
            self._adopted = True
            found = [policy for policy in LETTERS if _found(client, name_of(policy, self._host_id))]
            self._links = dict.fromkeys(found, (NEVER, NO_LINK))

    def _fresh(self, policy: str, client: Any) -> Link:
        seen_at, link = self._links.get(policy, (NEVER, NO_LINK))
        if link is NO_LINK or not _holds(seen_at):
            link = self._ensured(policy, client)
            self._links[policy] = (time.monotonic(), link)
        return link

    def _ensured(self, policy: str, client: Any) -> Link:
        name, bridge = name_of(policy, self._host_id), bridge_of(policy, self._host_id)
        found = _found(client, name)
        facts = found or self._made(policy, client)
        if facts["Internal"] != (policy == "gateway") or facts["Options"].get(BRIDGE_NAME) != bridge:
            raise Refused(f"network {name} is not as agentfleet makes it: remove it (`docker network rm {name}`)")
        if firewall.ensure(self._filter(policy, facts)) and found:
            log.warning("the host filter of network %s was not as it should be, and is set again", name)
        self._publish(client)
        return Link(name, {"gateway": _address(facts)}, **(WITHOUT_NAMES if policy == "gateway" else {}))

    def _filter(self, policy: str, facts: dict[str, Any]) -> firewall.Filter:
        bridge = bridge_of(policy, self._host_id)
        return firewall.Filter(bridge, _address(facts), settings.GATEWAY_PORT, outward=policy == "open")

    def _made(self, policy: str, client: Any) -> dict[str, Any]:
        name = name_of(policy, self._host_id)
        options = {BRIDGE_NAME: bridge_of(policy, self._host_id), "com.docker.network.bridge.enable_icc": "false"}
        labels = {"agentfleet.fleet": settings.FLEET, "agentfleet.host": self._host_id}
        try:
            client.create_network(
                name,
                driver="bridge",
                internal=policy == "gateway",
                options=options,
                labels=labels,
                check_duplicate=True,
            )
        except requests.exceptions.HTTPError:
            if _found(client, name) is None:  # another process has not been first: it failed
                raise
        if (facts := _found(client, name)) is None:
            raise SandboxError(f"network {name} was removed as soon as it was made")
        return facts

    def _publish(self, client: Any) -> None:
        """Tell the gateway of this host where to listen."""
        found = [_found(client, name_of(policy, self._host_id)) for policy in LETTERS]
        addresses = [_address(facts) for facts in found if facts is not None]
        facts = {"addresses": addresses, "port": settings.GATEWAY_PORT}
        file = Path(settings.HOME) / "gateway.json"
        if not addresses:
            file.unlink(missing_ok=True)
        elif private_files.read_json(file) != facts:
            private_files.write_json(file, facts)


def _refuse_unknown(policy: str) -> None:
    if policy not in LETTERS:
        raise Refused(f"network policy {policy!r} cannot be carried out by this version; use none, gateway or open")


def _holds(seen_at: float) -> bool:
    return time.monotonic() - seen_at < CHECKED_FOR


def _found(client: Any, name: str) -> dict[str, Any] | None:
    listed: list[dict[str, Any]] = client.networks(names=[name])  # whose names only begin so, too
    return next((facts for facts in listed if facts["Name"] == name), None)


def _address(facts: dict[str, Any]) -> str:
    """Of the host on that network."""
    return str(facts["IPAM"]["Config"][0]["Gateway"])


def _removed(client: Any, name: str) -> bool:
    """False: a container stands on it. None of that name is fine."""
    if _found(client, name) is None:
        return True
    try:
        client.remove_network(name)
    except requests.exceptions.HTTPError:
        return _found(client, name) is None
    return True
