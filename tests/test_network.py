"""What a sandbox reaches over its network, tried from inside real containers against real listeners."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from django.conf import settings

from agents.ids import new_id
from runs import sweep
from runs.sandbox import firewall, network
from runs.sandbox.base import Command, EngineDown, Following, Refused, Sandbox, Spec
from runs.sandbox.docker import DockerEngine
from runs.sandbox.fake import FakeEngine
from runs.worker import Worker
from tests.test_sandbox_contract import IMAGE, leave, sh, whole

pytestmark = pytest.mark.engine

Target = tuple[str, int]  # address and port

CONNECT = (
    "use IO::Socket::IP; while (<>) { ($a, $p) = split; "
    "print if IO::Socket::IP->new(PeerHost => $a, PeerService => $p, Timeout => 3) }"
)
SEND = 'while read -r a p; do echo sandbox >"/dev/udp/$a/$p"; done 2>/dev/null; true'
LISTEN = 'use IO::Socket::INET; $| = 1; $s = IO::Socket::INET->new(%s) or die; print "up\\n"; '
ACCEPT = LISTEN % "LocalPort => 8080, Listen => 5" + "while ($c = $s->accept) { close $c }"
RECEIVE = LISTEN % 'LocalAddr => "127.0.0.1", LocalPort => 53, Proto => "udp"' + "$s->recv($b, 512); print $b"


@dataclass(frozen=True)
class Pair:
    """Two sandboxes on the network of one policy."""

    engine: DockerEngine
    bridge: str
    address: str  # of the host on it
    first: Sandbox
    second: Sandbox


@dataclass(frozen=True)
class Outside:
    """A machine beyond this one that serves HTTP at both of its addresses."""

    address: str
    link_local: str  # as where clouds tell a machine about itself


def command(*argv: str, stdin: bytes = b"") -> Command:
    return Command(call_id=new_id("call"), argv=argv, timeout=60, stdin=stdin)


def begun(pair: Pair, sandbox: Sandbox, perl: str) -> Following:
    """A listener that has said that it listens."""
    following = pair.engine.exec(sandbox, command("perl", "-e", perl))
    assert following.read(30) == b"up\n"
    return following


def reached(pair: Pair, targets: Iterable[Target]) -> set[Target]:
    """Of the targets, those to which the first sandbox can connect."""
    lines = "".join(f"{address} {port}\n" for address, port in targets).encode()
    output, outcome = whole(pair.engine.exec(pair.first, command("perl", "-e", CONNECT, stdin=lines)))
    assert outcome.exit_code == 0
    return {(address, int(port)) for address, port in map(str.split, output.decode().splitlines())}


def from_here(target: Target) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(target, timeout=3):
        return True
    return False


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


def addresses_of_the_host() -> list[str]:
    """Of every interface, IPv4 and IPv6; those that are valid on one wire only cannot be named across it."""
    listed = [line.split() for line in ip("-o", "addr", "show").splitlines()]
    return [words[3].partition("/")[0] for words in listed if words[2] in {"inet", "inet6"} and "link" not in words]


def ports_listened_on() -> set[int]:
    tables = [Path("/proc/net", name).read_text().splitlines()[1:] for name in ("tcp", "tcp6")]
    rows = [line.split() for table in tables for line in table]
    return {int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == "0A"}


@pytest.fixture(scope="module")
def docker() -> Iterator[DockerEngine]:
    engine = DockerEngine(new_id("net"))
    yield engine
    for name in engine.names():
        engine.remove(name)
        engine.remove_workspace(name)
    engine.remove_networks()
    engine.close()


def started(docker: DockerEngine, policy: str) -> Sandbox:
    return docker.start(Spec(name=f"agentfleet-test-{new_id('box')}", image=IMAGE, network=policy))


def pair_of(docker: DockerEngine, policy: str) -> Pair:
    first, second = started(docker, policy), started(docker, policy)
    bridge = network.bridge_of(policy, docker._host_id)
    address = ip("-o", "-4", "addr", "show", bridge).split()[3].partition("/")[0]
    return Pair(docker, bridge, address, first, second)


@pytest.fixture(scope="module")
def closed(docker: DockerEngine) -> Pair:
    return pair_of(docker, "gateway")


@pytest.fixture(scope="module")
def opened(docker: DockerEngine) -> Pair:
    return pair_of(docker, "open")


@pytest.fixture(params=["gateway", "open"])
def pair(request: pytest.FixtureRequest) -> Pair:
    return request.getfixturevalue({"gateway": "closed", "open": "opened"}[request.param])  # type: ignore[no-any-return]


@contextlib.contextmanager
def listening(*places: Target) -> Iterator[list[Target]]:
    """An HTTP server at each place; 0 is any port."""
    servers = [http.server.ThreadingHTTPServer(place, http.server.BaseHTTPRequestHandler) for place in places]
    threads = [threading.Thread(target=server.serve_forever, args=[0.05]) for server in servers]
    for thread in threads:
        thread.start()
    try:
        yield [(str(server.server_name), server.server_port) for server in servers]
    finally:
        for server, thread in zip(servers, threads, strict=True):
            server.shutdown()
            thread.join()
            server.server_close()


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outside]:
    """Its names and addresses are this process's: others may be at the same test."""
    number = os.getpid() % 0x4000
    near_address, address = (f"198.18.{number >> 6}.{(number & 63) * 4 + end}" for end in (1, 2))
    link_local = f"169.254.{number >> 8}.{number & 255}"
    space, near, far = (f"aft{number}{end}" for end in ("", "near", "far"))
    server = [sys.executable, "-m", "http.server", "80", "--directory", str(tmp_path_factory.mktemp("served"))]
    ip("netns", "add", space)
    try:
        ip("link", "add", near, "type", "veth", "peer", "name", far, "netns", space)
        ip("addr", "add", f"{near_address}/30", "dev", near)
        ip("link", "set", near, "up")
        ip("-n", space, "addr", "add", f"{address}/30", "dev", far)
        ip("-n", space, "addr", "add", f"{link_local}/32", "dev", far)
        ip("-n", space, "link", "set", far, "up")
        ip("route", "add", f"{link_local}/32", "via", address, "dev", near)
        with subprocess.Popen(["ip", "netns", "exec", space, *server], stderr=subprocess.DEVNULL) as process:
            while not from_here((address, 80)):
                assert process.poll() is None
            yield Outside(address, link_local)
            process.kill()
    finally:
        ip("netns", "del", space)


def test_of_the_host_only_the_gateways_port_answers(pair: Pair) -> None:
    gateway = (pair.address, settings.GATEWAY_PORT)
    with listening(gateway, ("", 0), (pair.address, 0)) as (_, anywhere, there):
        targets = {(address, port) for address in addresses_of_the_host() for port in ports_listened_on()}
        assert {gateway, there, (pair.address, anywhere[1])} <= targets
        assert all(map(from_here, [gateway, there, (pair.address, anywhere[1])]))
        assert reached(pair, targets) == {gateway}


def test_no_datagram_reaches_the_host(pair: Pair) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_port, socket.socket(type=socket.SOCK_DGRAM) as names:
        any_port.bind(("", 0))
        names.bind((pair.address, 53))
        addresses = [address for address in addresses_of_the_host() if ":" not in address]
        targets = [(address, any_port.getsockname()[1]) for address in addresses] + [(pair.address, 53)]
        lines = "".join(f"{address} {port}\n" for address, port in targets).encode()
        whole(pair.engine.exec(pair.first, command("bash", "-c", SEND, stdin=lines)))
        for server in (any_port, names):
            server.settimeout(10)
            with socket.socket(type=socket.SOCK_DGRAM) as client:
                client.sendto(b"host", (pair.address, server.getsockname()[1]))
            assert server.recv(100) == b"host"


def test_neighbours_do_not_reach_each_other(pair: Pair) -> None:
    asked = ["docker", "inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", pair.second.name]
    address = subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()
    following = begun(pair, pair.second, ACCEPT)
    other_way_round = Pair(pair.engine, pair.bridge, pair.address, pair.second, pair.first)
    assert reached(other_way_round, [(address, 8080)]) == {(address, 8080)}
    assert reached(pair, [(address, 8080)]) == set()
    leave(following)


def test_only_an_open_sandbox_reaches_others_and_none_what_clouds_tell_machines(
    closed: Pair, opened: Pair, outside: Outside
) -> None:
    targets = [(outside.address, 80), (outside.link_local, 80)]
    assert [from_here(target) for target in targets] == [True, True]
    assert reached(closed, targets) == set()
    assert reached(opened, targets) == {(outside.address, 80)}


def test_names_are_asked_of_nobody_but_the_sandbox_itself(closed: Pair) -> None:
    assert whole(closed.engine.exec(closed.first, sh("getent hosts www.example.com", call="1-0")))[1].exit_code == 2
    following = begun(closed, closed.first, RECEIVE)
    whole(closed.engine.exec(closed.first, sh("getent hosts www.example.com", call="2-0")))
    assert b"example" in whole(following)[0]


def test_the_gateway_has_a_name_and_is_told_where_to_listen(
    closed: Pair, opened: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "CHECKED_FOR", 0.0)
    for pair in (closed, opened):
        output, _ = whole(pair.engine.exec(pair.first, sh("getent hosts gateway", call=new_id("call"))))
        assert output.split() == [pair.address.encode(), b"gateway"]
    facts = json.loads((settings.HOME / "gateway.json").read_text())
    assert facts == {"addresses": [closed.address, opened.address], "port": settings.GATEWAY_PORT}


@pytest.mark.parametrize(
    "changes",
    [
        ["-F AGENTFLEET-{bridge}-IN"],
        ["-D INPUT -i {bridge} -j AGENTFLEET-{bridge}-IN"],
        ["-D INPUT -i {bridge} -j AGENTFLEET-{bridge}-IN", "-F AGENTFLEET-{bridge}-IN", "-X AGENTFLEET-{bridge}-IN"],
        ["-I INPUT 1 -i {bridge} -j ACCEPT"],
        ["-I AGENTFLEET-{bridge}-IN 1 -j ACCEPT"],
    ],
)
def test_a_filter_that_somebody_changed_is_put_back_before_the_next_command(
    closed: Pair, monkeypatch: pytest.MonkeyPatch, changes: list[str]
) -> None:
    with contextlib.ExitStack() as undo, socket.create_server((closed.address, 0)) as server:
        for change in changes:
            words = change.format(bridge=closed.bridge).split()
            subprocess.run(["iptables", "-w", "5", *words], check=True)
            if "-I INPUT 1" in change:
                undo.callback(subprocess.run, ["iptables", "-w", "5", "-D", "INPUT", *words[3:]], check=True)
        monkeypatch.setattr(network, "CHECKED_FOR", 0.0)
        assert reached(closed, [server.getsockname()]) == set()


def test_a_filter_that_somebody_took_away_is_put_back_by_the_sweep(
    closed: Pair, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(network, "CHECKED_FOR", 0.0)
    rules = rules_of(closed.bridge)
    subprocess.run(["iptables", "-w", "5", "-F", f"AGENTFLEET-{closed.bridge}-IN"], check=True)
    assert rules_of(closed.bridge) < rules
    sweep.put_filters_back(closed.engine)
    assert rules_of(closed.bridge) == rules
    assert f"the host filter of network {network.name_of('gateway', closed.engine._host_id)}" in caplog.text


def test_a_policy_whose_filter_cannot_be_set_is_refused(
    docker: DockerEngine, closed: Pair, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(network, "CHECKED_FOR", 0.0)
    program = tmp_path / "iptables"
    program.write_text("#!/bin/sh\necho 'Permission denied (you must be root)' >&2\nexit 4\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(Refused, match=r"you must be root.*CAP_NET_ADMIN"):
        started(docker, "gateway")
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    with pytest.raises(Refused, match="there is no iptables on this host"):
        started(docker, "gateway")


def test_a_filter_that_takes_too_long_is_no_refusal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "iptables"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(firewall, "SECONDS", 0.1)
    with pytest.raises(EngineDown, match="iptables of this host did not end"):
        firewall.remove("afg-0123456789")


def test_a_policy_is_tried_without_a_trace(docker: DockerEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    set_filter, bridges = firewall.ensure, []

    def ensure(wanted: firewall.Filter) -> None:
        bridges.append(wanted.bridge)
        set_filter(wanted)
        if len(bridges) > 2:
            raise Refused("somebody is in the way")

    monkeypatch.setattr(firewall, "ensure", ensure)
    docker.try_network("gateway")
    docker.try_network("open")
    with pytest.raises(Refused, match="somebody is in the way"):
        docker.try_network("gateway")
    assert len(bridges) == 3
    assert [bridge for bridge in bridges if rules_of(bridge) or bridge in ip("-o", "link", "show")] == []


def test_a_worker_that_ends_takes_the_networks_on_which_no_sandbox_stands(tmp_path: Path) -> None:
    docker = DockerEngine(new_id("net"))
    worker = Worker(tmp_path, threads=1, make_engine=lambda _: docker)
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(docker.close)
        cleanup.callback(worker.leave)
        box = started(docker, "gateway")
        cleanup.callback(docker.remove_workspace, box.name)
        cleanup.callback(docker.remove, box.name)
        bridge = network.bridge_of("gateway", docker._host_id)
        worker.leave()
        assert rules_of(bridge) > 0
        assert ip("-o", "link", "show", bridge)
    assert rules_of(bridge) == 0
    assert bridge not in ip("-o", "link", "show")


def test_a_network_that_another_worker_took_along_is_made_again() -> None:
    host_id, name = new_id("net"), f"agentfleet-test-{new_id('box')}"
    spec = Spec(name=name, image=IMAGE, network="gateway")
    with contextlib.ExitStack() as cleanup:
        docker, other = (cleanup.enter_context(contextlib.closing(DockerEngine(host_id))) for _ in range(2))
        cleanup.callback(docker.remove_networks)
        cleanup.callback(docker.remove_workspace, name)
        cleanup.callback(docker.remove, name)
        docker.start(spec)
        docker.remove(name)
        other.remove_networks()
        docker.start(spec)
        assert rules_of(network.bridge_of("gateway", host_id)) > 0


def test_a_worker_ends_also_without_an_engine(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    engine = FakeEngine(tmp_path / "sandboxes")
    engine.down = True
    with caplog.at_level("INFO"):
        Worker(tmp_path, threads=1, make_engine=lambda _: engine).leave()
    assert "does not answer" in caplog.text


def rules_of(bridge: str) -> int:
    """In the tables of both families."""
    tables = [["iptables", "-w", "5", "-S"], ["ip6tables", "-w", "5", "-S"]]
    listed = [subprocess.run(table, check=True, capture_output=True, text=True).stdout for table in tables]
    return len(re.findall(bridge, "".join(listed)))
