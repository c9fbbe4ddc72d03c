"""What every sandbox promises, asked of each of them."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.client import HTTPResponse
from pathlib import Path

import pytest

from agents.ids import new_id
from runs.sandbox import ready
from runs.sandbox.base import (
    Command,
    Ending,
    Engine,
    Following,
    ImageMissing,
    Outcome,
    Refused,
    Sandbox,
    SandboxGone,
    Spec,
)
from runs.sandbox.docker import DockerEngine
from runs.sandbox.fake import FakeEngine

IMAGE = "agentfleet-sandbox:latest"


@pytest.fixture(scope="module")
def docker() -> Iterator[DockerEngine]:
    engine = DockerEngine("test")
    yield engine
    engine.close()


@pytest.fixture(params=["fake", pytest.param("docker", marks=pytest.mark.engine)])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Engine:
    if request.param == "docker":
        return request.getfixturevalue("docker")  # type: ignore[no-any-return]
    return FakeEngine(tmp_path / "fake", images=(IMAGE,))


@pytest.fixture
def name(engine: Engine) -> Iterator[str]:
    name = f"agentfleet-test-{new_id('box')}"
    yield name
    engine.remove(name)
    engine.remove_workspace(name)


@pytest.fixture
def box(engine: Engine, name: str) -> Sandbox:
    return engine.start(Spec(name=name, image=IMAGE))


def sh(script: str, *, call: str = "1-0", **changes: object) -> Command:
    return Command(**{"call_id": call, "argv": ["sh", "-c", script], "timeout": 30, **changes})  # type: ignore[arg-type]


def whole(following: Following) -> tuple[bytes, Outcome]:
    output = b""
    while (data := following.read(30)) is not None:
        output += data
    return output, following.outcome()


def leave(following: Following) -> None:
    following.close()
    assert following.read(0) is None


def test_a_command_gives_its_output_and_its_exit_code(engine: Engine, box: Sandbox) -> None:
    output, outcome = whole(engine.exec(box, sh("echo out; echo err >&2; exit 3")))
    assert output == b"out\nerr\n"
    assert outcome == Outcome(Ending.EXITED, 3)


def test_a_killed_command_reports_the_signal_as_a_shell_does(engine: Engine, box: Sandbox) -> None:
    _, outcome = whole(engine.exec(box, sh("kill -9 $$")))
    assert outcome == Outcome(Ending.EXITED, 137)


def test_a_missing_program_is_a_result_and_not_the_sandboxs_failure(engine: Engine, box: Sandbox) -> None:
    _, outcome = whole(engine.exec(box, Command(call_id="1-0", argv=["no-such-program"], timeout=5)))
    assert outcome == Outcome(Ending.EXITED, 127)


def test_asking_twice_runs_once_and_gives_the_same_answer(engine: Engine, box: Sandbox) -> None:
    command = sh("echo once >> log; cat log; exit 7")
    first = whole(engine.exec(box, command))
    assert whole(engine.exec(box, command)) == first == (b"once\n", Outcome(Ending.EXITED, 7))


def test_many_who_ask_together_follow_one_command(engine: Engine, box: Sandbox) -> None:
    command = sh("echo x >> log; sleep 0.3; wc -l < log")
    answers: list[tuple[bytes, Outcome]] = []
    threads = [threading.Thread(target=lambda: answers.append(whole(engine.exec(box, command)))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [(output.strip(), outcome.exit_code) for output, outcome in answers] == [(b"1", 0)] * 6


def test_a_follower_starts_where_it_is_told(engine: Engine, box: Sandbox) -> None:
    whole(engine.exec(box, sh("printf 0123456789")))
    output, _ = whole(engine.exec(box, sh("printf 0123456789"), offset=6))
    assert output == b"6789"


def test_a_command_outlives_the_one_who_started_it(engine: Engine, box: Sandbox) -> None:
    command = sh("for i in 1 2 3 4 5 6; do echo line $i; sleep 0.2; done")
    following = engine.exec(box, command)
    seen = following.read(10)
    assert seen is not None
    leave(following)
    time.sleep(0.5)
    rest, outcome = whole(engine.exec(box, command, offset=len(seen)))
    assert seen + rest == b"".join(b"line %d\n" % i for i in range(1, 7))
    assert outcome == Outcome(Ending.EXITED, 0)


def test_another_process_can_follow(engine: Engine, box: Sandbox) -> None:
    first = engine.exec(box, sh("echo begun; sleep 1; echo done"))
    assert first.read(10) == b"begun\n"
    root = f"Path({str(engine.root)!r})" if isinstance(engine, FakeEngine) else "'test'"
    script = (
        "from pathlib import Path\n"
        "import os; os.environ.setdefault('DJANGO_SETTINGS_MODULE', 'agentfleet.settings')\n"
        f"from {type(engine).__module__} import {type(engine).__name__} as E\n"
        f"from runs.sandbox.base import *\n"
        f"f = E({root}).exec(Sandbox({box.name!r}, {box.id!r}), Command(call_id='1-0', argv=['false'], timeout=5))\n"
        "out = b''\n"
        "while (data := f.read(5)) is not None: out += data\n"
        "print(out, f.outcome().exit_code)\n"
    )
    other = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert other.stdout == "b'begun\\ndone\\n' 0\n"
    assert whole(first) == (b"done\n", Outcome(Ending.EXITED, 0))


def test_the_deadline_kills_the_whole_group_also_when_nobody_follows(engine: Engine, box: Sandbox) -> None:
    script = "trap '' TERM; (while :; do echo beat >> beats; sleep 0.1; done) & echo begun; sleep 60"
    command = sh(script, timeout=1)
    following = engine.exec(box, command)
    assert following.read(10) == b"begun\n"
    leave(following)
    time.sleep(4.5)
    output, outcome = whole(engine.exec(box, command))
    assert output.startswith(b"begun\n")
    assert outcome.ending == Ending.TIMEOUT
    beats = [whole(engine.exec(box, sh("wc -l < beats", call=call)))[0] for call in ("2-0", "2-1")]
    assert beats[0] == beats[1]


def test_too_much_output_kills_the_command(engine: Engine, box: Sandbox) -> None:
    following = engine.exec(box, sh("yes", output_limit=100_000))
    size = 0
    while (data := following.read(30)) is not None:
        size += len(data)
    assert following.outcome().ending == Ending.OUTPUT_LIMIT
    assert size > 100_000
    assert whole(engine.exec(box, sh("echo fine", call="2-0", forget=["1-0"])))[0] == b"fine\n"


def test_standard_input_arrives_whole(engine: Engine, box: Sandbox) -> None:
    data = bytes(range(256)) * 4000
    output, _ = whole(engine.exec(box, sh("wc -c; cksum < /dev/null", stdin=data)))
    assert output.split()[0] == str(len(data)).encode()


def test_arguments_and_environment_arrive_as_they_are(engine: Engine, box: Sandbox) -> None:
    strange = "a b\n'\"$HOME`id`\\ é"
    argv = ["sh", "-c", 'printf "%s|%s" "$1" "$STRANGE"', "sh", strange]
    command = Command(call_id="1-0", argv=argv, timeout=5, env={"STRANGE": strange})
    output, _ = whole(engine.exec(box, command))
    assert output.decode() == f"{strange}|{strange}"


def test_a_program_can_be_interrupted_as_in_a_terminal(engine: Engine, box: Sandbox) -> None:
    script = "trap 'echo caught; exit 5' INT; (sleep 0.3; kill -INT $$) & while :; do sleep 0.05; done"
    assert whole(engine.exec(box, sh(script))) == (b"caught\n", Outcome(Ending.EXITED, 5))


def test_an_image_whose_tail_follows_no_process_is_polled(engine: Engine, box: Sandbox) -> None:
    """As with busybox. The first command says so to the keeper, which had found GNU's."""
    whole(engine.exec(box, sh('echo plain >"${AGENTFLEET_RECORDS:-/run/agentfleet}/born"', call="0-0")))
    command = sh("for i in 1 2 3; do echo line $i; sleep 0.3; done; exit 7", call="1-0")
    following = engine.exec(box, command)
    assert following.read(10) == b"line 1\n"
    leave(following)
    assert whole(engine.exec(box, command, offset=7)) == (b"line 2\nline 3\n", Outcome(Ending.EXITED, 7))
    large, outcome = whole(engine.exec(box, sh("head -c 3000000 /dev/zero | tr '\\0' x", call="2-0")))
    assert (len(large), outcome) == (3_000_000, Outcome(Ending.EXITED, 0))


def test_wiped_records_mean_lost_and_never_a_second_start(engine: Engine, box: Sandbox) -> None:
    records = "${AGENTFLEET_RECORDS:-/run/agentfleet}"
    assert whole(engine.exec(box, sh(f"rm -rf {records}/*; echo ran >> log")))[1].ending == Ending.LOST
    output, outcome = whole(engine.exec(box, sh("echo again", call="1-0")))
    assert (output, outcome.ending) == (b"", Ending.LOST)


def test_stopping_gives_commands_time_to_end(engine: Engine, box: Sandbox) -> None:
    following = engine.exec(box, sh("trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.05; done"))
    assert following.read(10) == b"up\n"
    engine.stop_commands(box, grace=5)
    output, outcome = whole(following)
    assert output.endswith(b"bye\n")  # after its shell's word on the terminated sleep
    assert outcome == Outcome(Ending.EXITED, 0)


def test_starting_twice_adopts(engine: Engine, box: Sandbox, name: str) -> None:
    whole(engine.exec(box, sh("echo kept > file")))
    again = engine.start(Spec(name=name, image=IMAGE))
    assert again == box
    assert whole(engine.exec(again, sh("cat file", call="2-0")))[0] == b"kept\n"


def test_a_removed_sandbox_is_gone_and_its_workspace_is_not(engine: Engine, box: Sandbox, name: str) -> None:
    whole(engine.exec(box, sh("echo kept > file")))
    following = engine.exec(box, sh("sleep 60", call="2-0"))
    engine.remove(name)
    with pytest.raises(SandboxGone):
        engine.find(name)
    with pytest.raises(SandboxGone):
        whole(following)
    with pytest.raises(SandboxGone):
        engine.exec(box, sh("echo no", call="3-0"))
    again = engine.start(Spec(name=name, image=IMAGE))
    assert again.id != box.id
    assert whole(engine.exec(again, sh("cat file")))[0] == b"kept\n"


def test_removing_what_is_not_there_is_fine(engine: Engine) -> None:
    engine.remove("agentfleet-test-nothing")
    engine.remove_workspace("agentfleet-test-nothing")


def test_names_lists_what_stands(engine: Engine, box: Sandbox) -> None:
    assert box.name in engine.names()
    engine.remove(box.name)
    assert box.name not in engine.names()


def test_files_are_there_before_the_first_command(engine: Engine, name: str) -> None:
    box = engine.start(Spec(name=name, image=IMAGE, files={"trigger.json": b'{"n": 1}'}))
    assert whole(engine.exec(box, sh("cat trigger.json")))[0] == b'{"n": 1}'


# Everything that a shell, a quoting or a text would change, all 256 bytes, and more than one word of a script holds.
SECRETS = {
    "github_token/default/token": b"ghp_'\"$HOME`id`\\%s\n\n",
    "git_ssh/a b/id_rsa": bytes(range(256)) * 300,
    "empty/default/field": b"",
}
SECRET_ENV = {"TOKEN": "a b'\"$HOME`id`\\%s\n é\n", "d": "/elsewhere", "child": "1", "timeout": "0", "R": "/nowhere"}
WHERE = 'cd "${AL_CREDENTIALS_PATH:-/credentials}"; '


def test_secrets_arrive_whole_and_are_said_again(engine: Engine, name: str) -> None:
    box = engine.start(Spec(name=name, image=IMAGE, secret_files=SECRETS, secret_env=SECRET_ENV))
    for number, (path, content) in enumerate(SECRETS.items()):
        assert whole(engine.exec(box, sh(f"{WHERE}cat '{path}'", call=f"1-{number}")))[0] == content
    printed, _ = whole(engine.exec(box, sh('printf "%s|" "$TOKEN" "$d" "$child" "$timeout" "$R"', call="2-0")))
    assert printed.decode() == "".join(f"{value}|" for value in SECRET_ENV.values())
    assert engine.read_secrets(box) == SECRETS | {f"${key}": value.encode() for key, value in SECRET_ENV.items()}


def test_names_of_a_users_variables_are_not_the_keepers(engine: Engine, name: str) -> None:
    """They are those that the keeper has for the record, the process, the deadline and the place of everything."""
    box = engine.start(Spec(name=name, image=IMAGE, secret_env=SECRET_ENV))
    command = sh("echo once >> log; cat log; exit 7")
    for offset in (0, 2):
        assert whole(engine.exec(box, command, offset=offset)) == (b"once\n"[offset:], Outcome(Ending.EXITED, 7))


def test_a_sandbox_that_is_adopted_keeps_the_secrets_it_got(engine: Engine, name: str) -> None:
    box = engine.start(Spec(name=name, image=IMAGE))
    assert engine.read_secrets(box) == {}
    for value in (b"first", b"second"):
        spec = Spec(name=name, image=IMAGE, secret_files={"a/b": value}, secret_env={"TOKEN": value.decode()})
        assert engine.start(spec) == box
        assert engine.read_secrets(box) == {"a/b": b"first", "$TOKEN": b"first"}
    assert whole(engine.exec(box, sh(f"{WHERE}cat a/b; echo $TOKEN")))[0] == b"firstfirst\n"
    engine.remove(name)
    again = engine.start(Spec(name=name, image=IMAGE))
    assert engine.read_secrets(again) == {}
    with pytest.raises(SandboxGone):
        engine.read_secrets(box)


@pytest.mark.parametrize(
    ("files", "env"),
    [({"../x": b""}, {}), ({"/etc/x": b""}, {}), ({"": b""}, {}), ({}, {"A B": "x"}), ({}, {"A": "x\0"})],
)
def test_secrets_that_cannot_be_given_are_refused(
    engine: Engine, name: str, files: dict[str, bytes], env: dict[str, str]
) -> None:
    with pytest.raises(Refused):
        engine.start(Spec(name=name, image=IMAGE, secret_files=files, secret_env=env))


@pytest.mark.parametrize("signal", ["exit", "rerun", "return"])
def test_a_signal_is_noticed_when_its_command_ends(engine: Engine, box: Sandbox, signal: str) -> None:
    quiet = sh('mkdir -p "$AL_SIGNAL_DIR"; echo busy >"$AL_SIGNAL_DIR/status"', call="1-0")
    assert whole(engine.exec(box, quiet))[1] == Outcome(Ending.EXITED, 0)
    loud = sh(f'echo 15 >"$AL_SIGNAL_DIR/{signal}"; exit 3', call="2-0")
    assert whole(engine.exec(box, loud))[1] == Outcome(Ending.EXITED, 3, signals=True)
    late = sh("sleep 60", call="3-0", timeout=1)
    assert whole(engine.exec(box, late))[1] == Outcome(Ending.TIMEOUT, 143, signals=True)


def test_a_missing_image_is_named(engine: Engine, name: str) -> None:
    with pytest.raises(ImageMissing, match="no-such-image"):
        engine.start(Spec(name=name, image="no-such-image:1"))


@pytest.mark.engine
@pytest.mark.parametrize("ended_by", ["kill", "rm -f", "restart -t 0"])
def test_a_container_that_dies_under_its_follower_is_gone(docker: DockerEngine, ended_by: str) -> None:
    """Its stream ends before the engine knows of it: that moment must not pass for a command without a reason."""
    name = f"agentfleet-test-{new_id('box')}"
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(docker.remove_workspace, name)
        cleanup.callback(docker.remove, name)
        following = docker.exec(docker.start(Spec(name=name, image=IMAGE)), sh("echo up; sleep 60"))
        assert following.read(10) == b"up\n"
        killer = subprocess.Popen(["docker", *ended_by.split(), name], stdout=subprocess.DEVNULL)
        with pytest.raises(SandboxGone):
            whole(following)
        assert killer.wait(30) == 0


@pytest.mark.engine
def test_output_that_comes_with_the_head_of_the_answer_is_not_lost(
    docker: DockerEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To a slow reader the engine's answer and the command's first words come in one piece."""
    name = f"agentfleet-test-{new_id('box')}"
    begin = HTTPResponse.begin

    def slowly(response: HTTPResponse) -> None:
        time.sleep(0.5)
        begin(response)

    with contextlib.ExitStack() as cleanup:
        cleanup.callback(docker.remove_workspace, name)
        cleanup.callback(docker.remove, name)
        box = docker.start(Spec(name=name, image=IMAGE))
        monkeypatch.setattr(HTTPResponse, "begin", slowly)
        for call in range(3):
            assert whole(docker.exec(box, sh("echo hello", call=f"{call}-0"))) == (
                b"hello\n",
                Outcome(Ending.EXITED, 0),
            )


@pytest.mark.engine
def test_a_keeper_that_is_killed_is_a_lost_command(docker: DockerEngine) -> None:
    name = f"agentfleet-test-{new_id('box')}"
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(docker.remove_workspace, name)
        cleanup.callback(docker.remove, name)
        box = docker.start(Spec(name=name, image=IMAGE))
        following = docker.exec(box, sh("echo up; sleep 60"))
        assert following.read(10) == b"up\n"
        whole(docker.exec(box, sh("pkill -KILL -f 'keeper.sh run 1-0'", call="2-0")))
        assert whole(following)[1].ending == Ending.LOST


@pytest.mark.engine
def test_docker_refuses_a_policy_it_cannot_carry_out(docker: DockerEngine) -> None:
    with pytest.raises(Refused, match="allowlist"):
        docker.start(Spec(name="agentfleet-test-refused", image=IMAGE, network="allowlist"))


@pytest.mark.engine
def test_a_containers_secrets_are_in_no_record_and_cannot_be_changed(docker: DockerEngine) -> None:
    name = f"agentfleet-test-{new_id('box')}"
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(docker.remove_workspace, name)
        cleanup.callback(docker.remove, name)
        files, env = {"github_token/default/token": b"ghp_hidden"}, {"TOKEN": "env_hidden"}
        box = docker.start(Spec(name=name, image=IMAGE, secret_files=files, secret_env=env))
        assert "_hidden" not in str(docker._client.inspect_container(name))
        tries = [
            "cat /credentials/github_token/default/token; echo $TOKEN; cat /run/agentfleet/given",
            "rm -rf /credentials/* /run/agentfleet/env /run/agentfleet/given",
            "echo x >/credentials/github_token/default/token",
            "touch /credentials/x /credentials/github_token/x",
            "mv /run/agentfleet/env /run/agentfleet/x",
            "echo x >/run/agentfleet/env",
        ]
        output, _ = whole(docker.exec(box, sh("\n".join(f"({line}) 2>/dev/null" for line in tries))))
        assert output == b"ghp_hiddenenv_hidden\n"
        assert docker.read_secrets(box) == files | {"$TOKEN": b"env_hidden"}
        forged = docker.start(Spec(name=f"{name}-2", image=IMAGE))
        cleanup.callback(docker.remove_workspace, forged.name)
        cleanup.callback(docker.remove, forged.name)
        whole(docker.exec(forged, sh("""echo '{"$TOKEN": "eA=="}' >/run/agentfleet/given""")))
        assert docker.read_secrets(forged) == {}
        again, _ = whole(docker.exec(box, sh("cat /credentials/*/*/*; echo $TOKEN", call="2-0")))
        assert again == b"ghp_hiddenenv_hidden\n"


@pytest.mark.engine
def test_every_image_gets_the_commands_first_in_its_path(docker: DockerEngine) -> None:
    name = f"agentfleet-test-{new_id('box')}"
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(docker.remove_workspace, name)
        cleanup.callback(docker.remove, name)
        box = docker.start(Spec(name=name, image=IMAGE, files={"notes.md": b"hello"}))
        asked = "command -v rlock; ls -ln /app/bin/rlock; cat /app/static/notes.md; touch /app/bin/x || echo no"
        output, _ = whole(docker.exec(box, sh(f"({asked}) 2>/dev/null")))
        path, listed, *rest = output.decode().splitlines()
        assert path == "/app/bin/rlock"
        assert listed.split()[:4] == ["-rwxr-xr-x", "1", "0", "0"]
        assert rest == ["hellono"]


@pytest.mark.engine
def test_an_image_made_ready_by_another_version_is_made_ready_again(
    docker: DockerEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = docker.prepare_image(IMAGE)
    assert docker.prepare_image(before) == before
    monkeypatch.setattr(ready, "version", lambda: "0" * 16)
    monkeypatch.setattr(docker, "_ready", {})
    after = docker.prepare_image(before)
    try:
        assert after not in {before, IMAGE}
    finally:
        docker._client.remove_image(after)


@pytest.mark.engine
def test_a_docker_sandbox_is_hardened(docker: DockerEngine) -> None:
    engine = docker
    name = f"agentfleet-test-{new_id('box')}"
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(engine.remove_workspace, name)
        cleanup.callback(engine.remove, name)
        box = engine.start(Spec(name=name, image=IMAGE))
        facts = engine._client.inspect_container(name)
        host = facts["HostConfig"]
        assert facts["Config"]["User"] == "1000:1000"
        assert host["ReadonlyRootfs"]
        assert host["CapDrop"] == ["ALL"]
        assert host["SecurityOpt"] == ["no-new-privileges:true"]
        assert host["NetworkMode"] == "none"
        assert host["Init"]
        assert (host["PidsLimit"], host["Memory"], host["NanoCpus"]) == (1024, 4 << 30, 2_000_000_000)
        assert (host["CpuShares"], host["OomScoreAdj"]) == (256, 500)
        probe = "touch /etc/x 2>&1; touch /workspace/x /tmp/x && echo writable; id -u; ls /sys/class/net"
        output, _ = whole(engine.exec(box, sh(probe)))
        assert output.split(b"\n")[-4:] == [b"writable", b"1000", b"lo", b""]
        assert b"Read-only" in output
