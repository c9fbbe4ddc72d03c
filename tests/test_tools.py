"""The tools a model has, doing real work: in the fake sandbox with plain POSIX tools, and in a real container."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import pytest

from agents.ids import new_id
from agents.patterns import PathPattern
from agents.redaction import RedactedStream, Redactor
from agents.spec import ToolName
from runs import tools
from runs.hands import WHOLE, Excerpt
from runs.sandbox.base import Command, Engine, Sandbox, Spec
from runs.sandbox.docker import DockerEngine
from runs.sandbox.fake import FakeEngine
from runs.sandbox.ready import BIN
from runs.tools.base import RESULT_CHARACTERS, RESULT_LINES, Asks, Finished, Result, ToolFailed, shorten
from runs.tools.grep import extended

IMAGE = "agentfleet-sandbox:latest"
ODD_NAMES = [
    "two words",
    "quo'te\"s",
    "new\nline",
    "-rf",
    "-",
    "$HOME`id`$(id)",
    "ünï☃",
    "*?[a]",
    "back\\slash",
    "  ",
    "a:b=c;d|e&f#g",
    "~x",
    "!x",
]
_numbers = itertools.count(1)


@dataclass
class Box:
    engine: Engine
    sandbox: Sandbox
    over: list[str] = field(default_factory=list)  # calls whose records may go: they share a small disk


class Here:
    """Hands in one folder of a sandbox, with an env.sh of its own."""

    def __init__(self, box: Box) -> None:
        self.box = box
        self.folder = f"test-{next(_numbers)}"
        self.commands: list[Command] = []
        self.limits: dict[str, Any] = {}
        self.env = {"AL_ENV_FILE": f"/tmp/{self.folder}.sh"}  # noqa: S108 - in the sandbox

    def exec(self, argv: Sequence[str], *, stdin: bytes = b"", timeout: int = 60, live: bool = False) -> Finished:
        command = Command(
            call_id=f"{next(_numbers)}-0",
            argv=["sh", "-c", 'mkdir -p "$1" && cd "$1" && shift && exec "$@"', "sh", self.folder, *argv],
            timeout=timeout,
            env=self.env,
            stdin=stdin,
            forget=self.box.over[-1:],
            **self.limits,
        )
        self.commands.append(command)
        following = self.box.engine.exec(self.box.sandbox, command)
        stream, excerpt, raw = RedactedStream(Redactor()), Excerpt(), bytearray()
        while (data := following.read(30)) is not None:
            excerpt.feed(stream.feed(data))
            raw += data[: WHOLE - len(raw)]
        excerpt.feed(stream.feed(b"", last=True))
        following.close()
        outcome = following.outcome()
        self.box.over.append(command.call_id)
        text = excerpt.text() if live else raw.decode("utf-8", "replace")
        return Finished(text, bytes(raw), outcome.ending, outcome.exit_code)

    # --- what tests do and see without a tool ---

    def sh(self, script: str, *arguments: str, stdin: bytes = b"") -> bytes:
        done = self.exec(["sh", "-c", script, "sh", *arguments], stdin=stdin)
        assert done.exit_code == 0, done.text
        return done.raw

    def put(self, name: str, content: bytes | str = b"") -> None:
        data = content.encode() if isinstance(content, str) else content
        self.sh('case $1 in */*) mkdir -p "./${1%/*}" ;; esac; cat >"./$1"', name, stdin=data)

    def get(self, name: str) -> bytes:
        return self.sh('cat "./$1"', name)

    def names(self) -> list[str]:
        return sorted(name.decode() for name in self.sh("find . -type f -exec printf '%s\\0' {} +").split(b"\0")[:-1])


@pytest.fixture(scope="module")
def boxes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Box]]:
    """One sandbox of each kind for all tests, started when the first asks."""
    started: dict[str, Box] = {}
    docker = DockerEngine("test")

    def box(kind: str) -> Box:
        if kind not in started:
            engine = docker if kind == "docker" else FakeEngine(tmp_path_factory.mktemp("fake"), images=(IMAGE,))
            env = {} if kind == "docker" else {"PATH": f"{BIN}:{plain_path(tmp_path_factory.mktemp('bin'))}"}
            spec = Spec(name=f"agentfleet-test-{new_id('box')}", image=IMAGE, env=env)
            started[kind] = Box(engine, engine.start(spec))
        return started[kind]

    yield box
    for kind in started:
        started[kind].engine.remove(started[kind].sandbox.name)
        started[kind].engine.remove_workspace(started[kind].sandbox.name)
    docker.close()


def plain_path(folder: Path) -> str:
    """A PATH with what is on ours, but for ripgrep: what an image without it has."""
    if shutil.which("rg") is None:
        return os.environ["PATH"]
    for place in map(Path, os.get_exec_path()):
        for program in place.iterdir() if place.is_dir() else ():
            link = folder / program.name
            if program.name != "rg" and not link.is_symlink():
                link.symlink_to(program)
    return str(folder)


@pytest.fixture(params=["fake", pytest.param("docker", marks=pytest.mark.engine)])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def here(kind: str, boxes: Callable[[str], Box]) -> Here:
    return Here(boxes(kind))


def use(here: Here, name: str, **arguments: Any) -> Result:
    """What the model is told, as a run would tell it."""
    tool = tools.ALL[name]
    try:
        return tool.run(tool.parse(arguments), here)
    except ToolFailed as error:
        return Result(str(error), is_error=True)


def told(here: Here, name: str, **arguments: Any) -> str:
    result = use(here, name, **arguments)
    assert not result.is_error, result.text
    return result.text


def refused(here: Here, name: str, **arguments: Any) -> str:
    result = use(here, name, **arguments)
    assert result.is_error, result.text
    return result.text


def numbered(*lines: str, start: int = 1) -> str:
    return "\n".join(f"{number:6}\t{line}" for number, line in enumerate(lines, start))


# --- bash ---------------------------------------------------------------------------------------------------------


def test_a_command_gives_its_output_and_no_error(here: Here) -> None:
    assert use(here, "bash", command="echo hi; echo there") == Result("hi\nthere\n", exit_code=0)
    assert use(here, "bash", command="true") == Result("[no output]", exit_code=0)


def test_a_failing_command_tells_its_exit_code(here: Here) -> None:
    assert use(here, "bash", command="echo '  oops'; exit 3") == Result("  oops\n[exit code 3]", True, 3)
    assert use(here, "bash", command="exit 255") == Result("[exit code 255]", True, 255)
    assert use(here, "bash", command="kill -9 $$") == Result("[exit code 137]", True, 137)
    missing = use(here, "bash", command="no-such-program")
    assert (missing.is_error, missing.exit_code) == (True, 127)
    assert "not found" in missing.text


def test_both_streams_come_in_the_order_they_were_written(here: Here) -> None:
    command = "for i in 1 2 3; do echo out $i; echo err $i >&2; done"
    assert told(here, "bash", command=command) == "out 1\nerr 1\nout 2\nerr 2\nout 3\nerr 3\n"


def test_a_command_that_takes_too_long_is_killed_and_says_so(here: Here) -> None:
    result = use(here, "bash", command="echo begun; sleep 60", timeout=1)
    assert result.is_error
    assert result.text == "begun\n[killed: still running after 1 s]"


def test_a_command_that_prints_without_end_is_killed_and_says_so(here: Here) -> None:
    here.limits = {"output_limit": 1_000_000}
    result = use(here, "bash", command="yes")
    assert result.is_error
    assert result.text.endswith("\n[killed: printed more than 64 MiB]")
    assert len(result.text) < RESULT_CHARACTERS + 200


def test_exports_in_env_sh_last_and_variables_do_not(here: Here) -> None:
    told(here, "bash", command="gone=1; export GONE=1; echo 'export KEPT=\"a b\"' >> $AL_ENV_FILE")
    assert told(here, "bash", command='echo "[$KEPT] [$GONE] [$gone]"') == "[a b] [] []\n"
    told(here, "bash", command="echo 'export KEPT=again' >> $AL_ENV_FILE; exit 0")
    assert told(here, "bash", command='echo "[$KEPT]"') == "[again]\n"


def test_setenv_sets_a_variable_for_this_command_and_all_later_ones(here: Here) -> None:
    assert told(here, "bash", command="setenv REPO 'it'\\''s a/b' N 7; echo \"$REPO\"") == "set 2 variables\nit's a/b\n"
    assert told(here, "bash", command='echo "[$REPO] [$N]"') == "[it's a/b] [7]\n"


@pytest.mark.engine
def test_in_a_container_env_sh_is_in_tmp(boxes: Callable[[str], Box]) -> None:
    here = Here(boxes("docker"))
    here.env = {}
    told(here, "bash", command="echo 'export KEPT=1; rm /tmp/env.sh' > /tmp/env.sh")
    assert told(here, "bash", command="echo $KEPT") == "1\n"
    assert told(here, "bash", command="echo [$KEPT]") == "[]\n"


def test_a_folder_does_not_last_from_call_to_call(here: Here) -> None:
    told(here, "bash", command="mkdir inner; cd inner; touch made-here")
    assert here.names() == ["./inner/made-here"]
    assert told(here, "bash", command="ls") == "inner\n"


def test_bash_is_taken_where_there_is_one(here: Here) -> None:
    assert told(here, "bash", command='a=(1 2 3); echo "${a[1]} $BASH_VERSION"').startswith("2 ")


def test_sh_is_taken_where_there_is_no_bash(here: Here) -> None:
    here.sh("mkdir bin; for p in sh cat echo; do ln -s $(command -v $p) bin/; done")
    script = tools.bash.ENTRY.replace("command=$1", "PATH=./bin; command=$1")
    done = here.exec(["sh", "-c", script, "bash", "echo hi; echo version: $BASH_VERSION; cat </dev/null"])
    assert (done.text, done.exit_code) == ("hi\nversion:\n", 0)


def test_a_command_arrives_as_it_was_written(here: Here) -> None:
    command = "cat <<'END'\n$HOME `id` \\ \"'\n\ttab ☃\nEND\nprintf '%s|' a\\ b 'c  d' # end"
    assert told(here, "bash", command=command) == "$HOME `id` \\ \"'\n\ttab ☃\na b|c  d|"


def test_a_command_has_nothing_to_read_and_no_terminal(here: Here) -> None:
    assert told(here, "bash", command="cat; [ -t 1 ] || echo no terminal") == "no terminal\n"


def test_what_it_leaves_running_is_waited_for_only_until_it_lets_go(here: Here) -> None:
    assert told(here, "bash", command="sleep 300 >/dev/null 2>&1 & echo started") == "started\n"


def test_a_long_output_is_told_by_its_head_and_its_tail(here: Here) -> None:
    text = told(here, "bash", command="seq 1 200000")
    whole = "".join(f"{number}\n" for number in range(1, 200_001))
    half = RESULT_CHARACTERS // 2
    missing = len(whole) - 2 * half
    assert text == f"{whole[:half]}\n[… {missing} characters left out …]\n{whole[-half:]}"


def test_many_short_lines_are_no_long_output(here: Here) -> None:
    assert told(here, "bash", command="yes | head -n 20000") == "y\n" * 20_000


def test_bytes_that_are_no_text_are_told_as_far_as_they_are(here: Here) -> None:
    assert told(here, "bash", command=r"printf 'a\377b\000c\303\251\n'") == "a�b�cé\n"
    assert told(here, "bash", command="head -c 100000 /dev/urandom | head -c 1000")


@pytest.mark.parametrize("command", ["x" * 100_001, "☃" * 40_000])
def test_a_command_that_no_kernel_takes_is_refused_with_a_way_out(here: Here, command: str) -> None:
    assert "write it to a file" in refused(here, "bash", command=command)
    assert here.commands == []


def test_a_long_command_is_taken(here: Here) -> None:
    assert told(here, "bash", command=f"echo {'x' * 90_000} | wc -c").strip() == "90001"


# --- read ---------------------------------------------------------------------------------------------------------


def test_lines_come_numbered(here: Here) -> None:
    here.put("file", "one\n\n\tthree  \n")
    assert told(here, "read", file_path="file") == numbered("one", "", "\tthree  ")


def test_a_last_line_without_an_end_is_a_line(here: Here) -> None:
    here.put("file", "one\ntwo")
    assert told(here, "read", file_path="file") == numbered("one", "two")


def test_offset_and_limit_choose_and_the_rest_is_pointed_to(here: Here) -> None:
    here.put("file", "".join(f"line {number}\n" for number in range(1, 11)))
    assert told(here, "read", file_path="file", offset=9) == numbered("line 9", "line 10", start=9)
    assert told(here, "read", file_path="file", offset=3, limit=2) == (
        f"{numbered('line 3', 'line 4', start=3)}\n[… there is more: go on with offset=5 …]"
    )
    assert told(here, "read", file_path="file", offset=10, limit=1) == numbered("line 10", start=10)
    assert told(here, "read", file_path="file", offset=8, limit=2000).count("\n") == 2


def test_beyond_the_end_the_length_is_told(here: Here) -> None:
    here.put("file", "one\ntwo")
    assert refused(here, "read", file_path="file", offset=3) == "file has 2 lines: there is no line 3"
    assert refused(here, "read", file_path="file", offset=1_000_000_000, limit=1).startswith("file has 2 lines")


def test_an_empty_file_is_told_to_be_empty(here: Here) -> None:
    here.put("file")
    assert told(here, "read", file_path="file") == "[the file is empty]"
    assert told(here, "read", file_path="file", offset=5) == "[the file is empty]"


def test_only_newlines_are_lines(here: Here) -> None:
    here.put("file", "\n\n")
    assert told(here, "read", file_path="file") == numbered("", "")


def test_carriage_returns_are_not_shown(here: Here) -> None:
    here.put("file", "one\r\ntwo\r\n")
    assert told(here, "read", file_path="file") == numbered("one", "two")


def test_other_separators_do_not_end_a_line(here: Here) -> None:
    here.put("file", "a\fb\x0bc\u2028d\x85e\rf\n")
    assert told(here, "read", file_path="file") == numbered("a\fb\x0bc\u2028d\x85e\rf")


def test_what_cannot_be_read_says_why(here: Here) -> None:
    here.sh("mkdir folder; mkfifo pipe; ln -s nowhere broken")
    assert refused(here, "read", file_path="missing") == "there is no file missing"
    assert refused(here, "read", file_path="missing/below") == "there is no file missing/below"
    assert refused(here, "read", file_path="broken") == "there is no file broken"
    assert refused(here, "read", file_path="folder").startswith("folder is a directory")
    assert refused(here, "read", file_path="pipe").startswith("pipe is not a regular file")
    assert refused(here, "read", file_path="x" * 5000) == f"there is no file {'x' * 5000}"
    assert "longer than" in refused(here, "read", file_path="x" * 200_000)


def test_a_binary_file_is_named_and_not_shown(here: Here) -> None:
    here.put("file", b"\x7fELF\0\0\1\2\n")
    assert refused(here, "read", file_path="file") == "file is a binary file: use bash on it"


def test_text_in_another_encoding_is_shown_as_far_as_it_goes(here: Here) -> None:
    here.put("file", "café\n".encode("latin-1"))
    assert told(here, "read", file_path="file") == numbered("caf�")


def test_a_long_line_is_cut_and_says_so(here: Here) -> None:
    here.put("file", f"{'x' * 2000}\n{'y' * 2005}\nend\n")
    assert told(here, "read", file_path="file") == numbered(
        "x" * 2000, f"{'y' * 2000} [… 5 characters left out …]", "end"
    )


def test_a_long_file_is_read_in_stretches_that_miss_nothing(here: Here) -> None:
    lines = [f"{'☃' * 40} {number}" for number in range(1, 3001)]
    here.put("file", "".join(f"{line}\n" for line in lines))
    seen: list[str] = []
    while len(seen) < len(lines):
        text = told(here, "read", file_path="file", offset=len(seen) + 1)
        assert len(text) <= RESULT_CHARACTERS + 100
        *rows, note = text.split("\n") if len(seen) + 1000 < len(lines) else [*text.split("\n"), ""]
        rows = [row for row in rows if "\t" in row]
        seen += [row.partition("\t")[2] for row in rows]
        assert not note or note == f"[… there is more: go on with offset={len(seen) + 1} …]" or len(seen) == 3000
    assert seen == lines


def test_a_file_of_one_endless_line_is_no_danger(here: Here) -> None:
    here.sh("head -c 100000000 /dev/zero | tr '\\0' x >file")
    text = told(here, "read", file_path="file")
    assert text.startswith(f"     1\t{'x' * 2000} [… ")
    assert len(text) < 2200


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names_are_names(here: Here, name: str) -> None:
    here.put("other", "untouched")
    told(here, "write", file_path=name, content="one\n")
    assert told(here, "read", file_path=name) == numbered("one")
    told(here, "edit", file_path=name, old_string="one", new_string="two")
    assert here.get(name) == b"two\n"
    told(here, "write", file_path=f"in {name}/deep/{name}", content="three")
    assert here.get(f"in {name}/deep/{name}") == b"three"
    found = told(here, "glob", pattern="**").split("\n")
    assert len(found) == 3
    if name.isprintable():
        assert name in found
    assert "1" in told(here, "grep", pattern="two", path=name, output_mode="count")
    assert here.get("other") == b"untouched"
    assert len(here.names()) == 3


def test_a_tilde_is_the_home(here: Here) -> None:
    name = f"~/{here.folder}.txt"
    told(here, "write", file_path=name, content="at home")
    assert here.sh(f'cat "$HOME/{here.folder}.txt"') == b"at home"
    assert told(here, "read", file_path=name) == numbered("at home")


def test_absolute_paths_are_absolute(here: Here) -> None:
    folder = here.sh("pwd").decode().strip()
    told(here, "write", file_path=f"{folder}/a/b", content="x")
    assert told(here, "read", file_path=f"{folder}/a/b") == numbered("x")
    assert told(here, "glob", pattern="b", path=folder) == f"{folder}/a/b"
    assert told(here, "glob", pattern=f"{folder}/*/b") == f"{folder}/a/b"
    assert told(here, "grep", pattern="x", path=folder) == f"{folder}/a/b:1:x"


# --- write --------------------------------------------------------------------------------------------------------


def test_writing_makes_the_folders_and_the_file(here: Here) -> None:
    assert told(here, "write", file_path="a/b c/file", content="é\n") == "wrote 3 bytes to a/b c/file"
    assert here.get("a/b c/file") == "é\n".encode()
    told(here, "write", file_path="a/b c/file", content="")
    assert here.get("a/b c/file") == b""
    assert here.names() == ["./a/b c/file"]


def test_content_arrives_byte_for_byte(here: Here) -> None:
    content = "no end\r\n\t$HOME `id` \\n \x01\x7f ☃ \U0001f600" * 50_000
    told(here, "write", file_path="file", content=content)
    assert here.get("file") == content.encode()


def test_a_file_that_is_there_keeps_its_mode(here: Here) -> None:
    here.sh("echo old >file; chmod 751 file")
    told(here, "write", file_path="file", content="new")
    assert here.sh("stat -c %a file; cat file") == b"751\nnew"


def test_a_file_is_replaced_whole_and_not_written_over(here: Here) -> None:
    here.sh("echo old >file; ln file same")
    told(here, "write", file_path="file", content="new")
    assert (here.get("file"), here.get("same")) == (b"new", b"old\n")
    assert here.names() == ["./file", "./same"]


def test_a_link_stays_and_what_it_points_to_is_written(here: Here) -> None:
    here.sh("mkdir real; echo old >'real/fi le'; ln -s 'real/fi le' link; ln -s link second; ln -s real/new fresh")
    told(here, "write", file_path="second", content="new")
    told(here, "write", file_path="fresh", content="born")
    assert here.sh("for link in second link fresh; do readlink $link; done") == b"link\nreal/fi le\nreal/new\n"
    assert (here.get("real/fi le"), here.get("real/new")) == (b"new", b"born")


def test_what_is_no_file_is_not_written(here: Here) -> None:
    here.sh("mkdir folder; mkfifo pipe; ln -s folder link; ln -s loop loop; echo x >file")
    assert refused(here, "write", file_path="folder", content="x") == "folder is a directory"
    assert refused(here, "write", file_path="link", content="x") == "link is a directory"
    assert refused(here, "write", file_path="pipe", content="x").startswith("pipe is not a regular file")
    assert refused(here, "write", file_path="loop", content="x").endswith("loop is a link that leads nowhere")
    assert "file" in refused(here, "write", file_path="file/below", content="x")
    assert "directory" in refused(here, "write", file_path="new/", content="x")
    assert refused(here, "write", file_path="x" * 300, content="x")
    assert here.names() == ["./file"]


@pytest.mark.engine
def test_what_may_not_be_written_is_not(boxes: Callable[[str], Box]) -> None:
    here = Here(boxes("docker"))  # the fake's user may do everything
    here.sh("echo old >file; chmod 444 file; echo old >hidden; chmod 000 hidden; mkdir shut; chmod 555 shut")
    assert refused(here, "write", file_path="file", content="x") == "file may not be written: permission denied"
    assert refused(here, "edit", file_path="file", old_string="old", new_string="new").endswith("permission denied")
    assert refused(here, "read", file_path="hidden") == "hidden may not be read: permission denied"
    assert refused(here, "edit", file_path="hidden", old_string="x", new_string="y").endswith("permission denied")
    assert "denied" in refused(here, "write", file_path="shut/new", content="x")
    assert "ead-only" in refused(here, "write", file_path="/etc/new", content="x")
    assert here.get("file") == b"old\n"


# --- edit ---------------------------------------------------------------------------------------------------------


def test_the_only_occurrence_is_replaced(here: Here) -> None:
    here.sh("printf 'one\\ntwo\\nthree' >file; chmod 700 file")
    assert told(here, "edit", file_path="file", old_string="two\n", new_string="2\n$&\\1\n") == (
        "replaced 1 occurrence in file"
    )
    assert here.get("file") == b"one\n2\n$&\\1\nthree"
    assert here.sh("stat -c %a file") == b"700\n"


def test_all_are_replaced_only_when_asked_for(here: Here) -> None:
    here.put("file", "a b a b a")
    assert refused(here, "edit", file_path="file", old_string="a", new_string="c") == (
        "old_string occurs 3 times in file: give more of the text around it, or set replace_all"
    )
    assert here.get("file") == b"a b a b a"
    assert told(here, "edit", file_path="file", old_string="a", new_string="", replace_all=True) == (
        "replaced 3 occurrences in file"
    )
    assert here.get("file") == b" b  b "


def test_what_does_not_occur_is_not_replaced(here: Here) -> None:
    here.put("file", "one\n")
    assert refused(here, "edit", file_path="file", old_string="One", new_string="x") == (
        "old_string does not occur in file: read it and copy the text exactly"
    )
    assert "no file missing" in refused(here, "edit", file_path="missing", old_string="a", new_string="b")
    assert "directory" in refused(here, "edit", file_path=".", old_string="a", new_string="b")


def test_a_change_that_changes_nothing_is_refused(here: Here) -> None:
    assert "are the same" in refused(here, "edit", file_path="file", old_string="one", new_string="one")
    assert here.commands == []


def test_a_file_that_is_no_text_or_too_large_is_left_to_bash(here: Here) -> None:
    here.put("latin", "café".encode("latin-1"))
    here.sh(
        "head -c 1048577 /dev/zero | tr '\\0' x >large; head -c 1048576 /dev/zero | tr '\\0' x >fits; echo y >>fits"
    )
    assert refused(here, "edit", file_path="latin", old_string="caf", new_string="x") == (
        "latin is not text in UTF-8: use bash on it"
    )
    assert refused(here, "edit", file_path="large", old_string="x", new_string="y").startswith("large is larger than")
    here.sh("head -c 1048575 /dev/zero | tr '\\0' x >fits; printf y >>fits")
    told(here, "edit", file_path="fits", old_string="xy", new_string="xz")
    assert here.get("fits")[-2:] == b"xz"


def test_a_file_with_carriage_returns_keeps_them(here: Here) -> None:
    here.put("file", "one\r\ntwo\r\nthree\r\n")
    told(here, "edit", file_path="file", old_string="one\ntwo", new_string="1\n2")
    told(here, "edit", file_path="file", old_string="three", new_string="3\n4")
    assert here.get("file") == b"1\r\n2\r\n3\r\n4\r\n"
    told(here, "edit", file_path="file", old_string="3\r\n", new_string="three\n")
    assert here.get("file") == b"1\r\n2\r\nthree\n4\r\n"


def test_a_file_with_some_carriage_returns_is_taken_at_its_word_first(here: Here) -> None:
    here.put("file", "one\r\ntwo\nthree\r\nfour")
    told(here, "edit", file_path="file", old_string="two\nthree", new_string="2\n3")
    assert here.get("file") == b"one\r\n2\n3\r\nfour"
    told(here, "edit", file_path="file", old_string="3\nfour", new_string="3\n4")
    assert here.get("file") == b"one\r\n2\n3\r\n4"


# --- glob ---------------------------------------------------------------------------------------------------------

TREE = [
    "README.md", "app.py", ".env", ".github/ci.yml", ".git/config", "src/app.py", "src/app.ts", "src/app.tsx",
    "src/deep/er/x.py", "src/deep/y.py", "src/[id].tsx", "test/a1.txt", "test/b1.txt", "test/c2.txt", "test/.git/x",
]  # fmt: skip


@pytest.fixture
def tree(here: Here) -> Here:
    here.sh('for f; do mkdir -p "./$(dirname "$f")"; echo "in $f" >"./$f"; done', *TREE)
    return here


def found(here: Here, pattern: str, **more: Any) -> list[str]:
    text = told(here, "glob", pattern=pattern, **more)
    return [] if text == "no file matches" else text.split("\n")


def test_patterns_find_what_models_expect_them_to(tree: Here) -> None:
    all_python = ["app.py", "src/app.py", "src/deep/er/x.py", "src/deep/y.py"]
    assert found(tree, "**/*.py") == all_python
    assert found(tree, "*.py") == all_python, "a name alone is looked for in every folder"
    assert found(tree, "./*.py") == ["app.py"]
    assert found(tree, "src/*.py") == ["src/app.py"]
    assert found(tree, "src/**/*.py") == ["src/app.py", "src/deep/er/x.py", "src/deep/y.py"]
    assert found(tree, "src/**/er/*") == ["src/deep/er/x.py"]
    assert found(tree, "**/deep/**") == ["src/deep/er/x.py", "src/deep/y.py"]
    assert found(tree, "src/deep/") == ["src/deep/er/x.py", "src/deep/y.py"]
    assert found(tree, "src/*.{ts,tsx}") == ["src/[id].tsx", "src/app.ts", "src/app.tsx"]
    assert found(tree, "{src,test}/{app,a1}.{py,txt}") == ["src/app.py", "test/a1.txt"]
    assert found(tree, "test/?1.txt") == ["test/a1.txt", "test/b1.txt"]
    assert found(tree, "test/[a-b]*.txt") == ["test/a1.txt", "test/b1.txt"]
    assert found(tree, "test/[!a]1.txt") == found(tree, "test/[^a]1.txt") == ["test/b1.txt"]
    assert found(tree, r"src/\[id\].tsx") == ["src/[id].tsx"]
    assert found(tree, "README.md") == ["README.md"]
    assert found(tree, "src/app.py") == ["src/app.py"]
    assert found(tree, "readme.md") == []
    assert found(tree, "src/*") == ["src/[id].tsx", "src/app.py", "src/app.ts", "src/app.tsx"]


def test_hidden_files_are_found_and_git_is_not_unless_named(tree: Here) -> None:
    everything = sorted(name for name in TREE if ".git/" not in name)
    assert found(tree, "**") == found(tree, "**/*") == found(tree, "*") == everything
    assert found(tree, ".*") == [".env"]
    assert found(tree, "**/.github/*.yml") == [".github/ci.yml"]
    assert found(tree, ".git/*") == found(tree, "**/.git/config") == [".git/config"]


def test_paths_can_be_used_as_they_are_told(tree: Here) -> None:
    assert found(tree, "*.py", path="src") == ["src/app.py", "src/deep/er/x.py", "src/deep/y.py"]
    assert found(tree, "*.py", path="./src/") == found(tree, "*.py", path="src")
    assert found(tree, "er/*.py", path="src/deep") == ["src/deep/er/x.py"]
    assert found(tree, "../test/a*", path="src") == ["src/../test/a1.txt"]
    for path in found(tree, "*.py", path="src"):
        assert told(tree, "read", file_path=path) == numbered(f"in {path}")


def test_where_there_is_no_folder_it_is_said(tree: Here) -> None:
    assert refused(tree, "glob", pattern="*", path="missing") == "there is no folder missing"
    assert refused(tree, "glob", pattern="*", path="app.py") == "there is no folder app.py"
    assert told(tree, "glob", pattern="missing/*.py") == told(tree, "glob", pattern="app.py/*") == "no file matches"


def test_folders_and_links_are_no_files_and_a_linked_folder_can_be_searched(tree: Here) -> None:
    tree.sh("ln -s src linked; ln -s app.py app-link.py")
    assert found(tree, "app*.py") == ["app.py", "src/app.py"]
    assert found(tree, "*.ts", path="linked") == ["linked/app.ts"]


def test_a_deep_tree_is_no_danger(here: Here) -> None:
    here.sh('p=.; for i in $(seq 1 150); do p=$p/d$i; done; mkdir -p "$p"; echo x >"$p/end.txt"')
    (path,) = found(here, "**/d75/**/*.txt")
    assert path.endswith("/d150/end.txt")
    assert found(here, "/".join(["**"] * 30) + "/*nothing*a*b*c*d*e*f*g*h*") == []
    assert told(here, "grep", pattern="x", output_mode="count") == f"{path}:1"


def test_what_does_not_fit_is_counted_and_whatever_is_there_is_found(here: Here) -> None:
    here.sh("mkdir many; cd many; seq 100001 125000 | sed 's/.*/file-&.txt/' | xargs touch; touch zzz.py")
    assert found(here, "*.py") == ["many/zzz.py"]
    some = found(here, "many/*.txt")
    assert some[:2] == ["many/file-100001.txt", "many/file-100002.txt"]
    assert (len(some), some[-1]) == (1001, "[… 24000 more …]")


def test_too_many_braces_are_refused(here: Here) -> None:
    assert "use fewer braces" in refused(here, "glob", pattern="{a,b}" * 12)


@pytest.mark.parametrize(
    ("pattern", "matching", "other"),
    [
        ("*", ["a", ".a", "x/a"], []),
        ("/a", ["a"], ["x/a"]),
        ("a/**/b", ["a/b", "a/x/b", "a/x/y/b"], ["b", "x/a/b", "a/b/c"]),
        ("a/**", ["a/b", "a/b/c"], ["b/a"]),
        ("**/a/*", ["a/b", "x/a/b"], ["a", "a/b/c"]),
        ("a**b", ["ab", "axb"], ["a/b"]),
        ("{a,b/c}/*.py", ["a/x.py", "b/c/x.py"], ["b/x.py"]),
        ("{a,{b,c}}d", ["ad", "bd", "cd"], ["d"]),
        ("{a}", ["{a}"], ["a"]),
        ("a{", ["a{"], ["a"]),
        ("a}b,c", ["a}b,c"], ["ab"]),
        (r"\{a,b\}", ["{a,b}"], ["a"]),
        (r"a\*b", ["a*b"], ["axb"]),
        ("[a", ["[a"], ["a"]),
        ("[]]", ["]"], ["a"]),
        ("[z-a]", [], ["a", "z", "[z-a]"]),
        ("[[a]", ["[", "a"], ["[a"]),
        ("a.b", ["a.b"], ["axb"]),
        ("(a|b)+$^", ["(a|b)+$^"], ["a"]),
        ("ü?☃", ["üx☃"], ["ü☃"]),
        ("a?b", ["a\nb"], ["a/b", "ab"]),
    ],
)
def test_a_pattern_matches(pattern: str, matching: list[str], other: list[str]) -> None:
    compiled = PathPattern(pattern)
    assert [path for path in [*matching, *other] if compiled.matches(path)] == matching


def test_no_pattern_takes_longer_than_it_should() -> None:
    hostile = PathPattern("**/" * 20 + "*a" * 40 + "*b")
    assert not hostile.matches("/".join(["a" * 250] * 100))
    assert not hostile.matches("a" * 100_000)


# --- grep ---------------------------------------------------------------------------------------------------------


def hits(here: Here, pattern: str, **more: Any) -> list[str]:
    text = told(here, "grep", pattern=pattern, **more)
    return [] if text == "nothing matches" else sorted(text.split("\n"))


@pytest.fixture
def texts(here: Here) -> Here:
    here.put("a.py", "import os\nclass Foo:\n    pass  # foo\n")
    here.put("sub/b.ts", "let foo = 12;\nlet bar = 'x y';\n")
    here.put("sub/c.tsx", "foo()\r\n")
    here.put("sub/deep/d.md", "Foo.bar [x] {y}\n-foo\n")
    here.put(".hidden", "foo\n")
    here.put(".git/e", "foo\n")
    return here


def test_matching_lines_come_with_file_and_number(texts: Here) -> None:
    assert hits(texts, "foo") == [
        ".hidden:1:foo",
        "a.py:3:    pass  # foo",
        "sub/b.ts:1:let foo = 12;",
        "sub/c.tsx:1:foo()",
        "sub/deep/d.md:2:-foo",
    ]
    assert hits(texts, "no such thing") == []


def test_the_modes_tell_names_or_counts(texts: Here) -> None:
    assert hits(texts, "let", output_mode="files_with_matches") == ["sub/b.ts"]
    assert hits(texts, "let|foo", output_mode="count") == [
        ".hidden:1", "a.py:1", "sub/b.ts:2", "sub/c.tsx:1", "sub/deep/d.md:1",
    ]  # fmt: skip
    assert hits(texts, "nothing", output_mode="count") == []


def test_case_matters_unless_told_otherwise(texts: Here) -> None:
    assert hits(texts, "Foo") == ["a.py:2:class Foo:", "sub/deep/d.md:1:Foo.bar [x] {y}"]
    assert len(hits(texts, "FOO", ignore_case=True)) == 7


def test_a_glob_narrows_the_files(texts: Here) -> None:
    assert hits(texts, "foo", glob="*.py") == ["a.py:3:    pass  # foo"]
    assert hits(texts, "foo", glob="*.{ts,tsx}", output_mode="files_with_matches") == ["sub/b.ts", "sub/c.tsx"]
    assert hits(texts, "foo", glob="sub/**/*.md", output_mode="files_with_matches") == ["sub/deep/d.md"]
    assert hits(texts, "foo", glob="*.none") == []


def test_a_path_narrows_the_folder_or_names_the_file(texts: Here) -> None:
    assert hits(texts, "bar", path="sub") == ["sub/b.ts:2:let bar = 'x y';", "sub/deep/d.md:1:Foo.bar [x] {y}"]
    assert hits(texts, "foo", path="sub/") == hits(texts, "foo", path="./sub")
    assert hits(texts, "foo", path="sub/b.ts") == ["sub/b.ts:1:let foo = 12;"]
    assert hits(texts, "foo", path=".git") == [".git/e:1:foo"]
    assert refused(texts, "grep", pattern="foo", path="missing") == "there is no file or folder missing"
    texts.sh("ln -s sub linked")
    assert hits(texts, "bar", path="linked", glob="*.ts") == ["linked/b.ts:2:let bar = 'x y';"]


@pytest.mark.parametrize(
    ("pattern", "line"),
    [
        (r"foo = \d+;", "let foo = 12;"),
        (r"\blet bar\b", "let bar = 'x y';"),
        (r"^let\s+\w+ = '[^\s]", "let bar = 'x y';"),
        (r"^foo\(\)", "foo()"),
        (r"(?:Foo|Baz)\.bar", "Foo.bar [x] {y}"),
        (r"\[x\] \{y\}", "Foo.bar [x] {y}"),
        (r"\[[^\]]+\] ", "Foo.bar [x] {y}"),
        (r"F.*?bar", "Foo.bar [x] {y}"),
        ("-foo", "-foo"),
        ("-e|-foo", "-foo"),
        (r"fo{2}\b.*1[\d]", "let foo = 12;"),
        (r"'x[ \t]y'", "let bar = 'x y';"),
        (r"o\.b", "Foo.bar [x] {y}"),
        (r"\-foo", "-foo"),
    ],
)
def test_expressions_mean_what_models_mean_by_them(texts: Here, pattern: str, line: str) -> None:
    matching = [hit.split(":", 2)[2] for hit in hits(texts, pattern)]
    assert matching == [line]


def test_what_is_no_expression_is_an_error_and_not_a_result(texts: Here) -> None:
    for pattern in ("(foo", "[foo", "foo{2,1}"):
        words = refused(texts, "grep", pattern=pattern)
        assert words
        assert "foo = 12" not in words


def test_quotes_dollars_and_newlines_go_nowhere_but_into_the_search(texts: Here) -> None:
    texts.put("odd", 'it\'s $HOME "`id`"\n')
    assert hits(texts, """it's \\$HOME "`id`\"""") == ['odd:1:it\'s $HOME "`id`"']
    use(texts, "grep", pattern="$(touch made)\n;touch made", glob="'; touch made; '", path=".")
    assert "./made" not in texts.names()


def test_a_match_does_not_depend_on_how_many_files_do_not(here: Here) -> None:
    here.sh("for i in $(seq 1 800); do echo nothing >$i.txt; done; echo needle >zzz.txt")
    assert hits(here, "needle", output_mode="count") == ["zzz.txt:1"]
    assert hits(here, "needle") == ["zzz.txt:1:needle"]


def test_too_many_matches_are_cut_and_say_so(here: Here) -> None:
    here.sh("seq 1 100000 | sed 's/^/needle /' >many.txt")
    lines = told(here, "grep", pattern="needle").split("\n")
    assert lines[:2] == ["many.txt:1:needle 1", "many.txt:2:needle 2"]
    assert (len(lines), lines[-1]) == (501, "[… more than 500 lines: narrow the search …]")


def test_a_very_long_line_is_cut(here: Here) -> None:
    here.sh("for i in 1 2 3; do head -c 3000000 /dev/zero | tr '\\0' x; echo needle; done >min.js; echo needle >z.js")
    text = told(here, "grep", pattern="needle|xxx")
    assert "min.js:1:xxx" in text
    assert "z.js:1:needle" in text
    assert len(text) < 5000


def test_binary_files_do_not_spill(here: Here) -> None:
    here.put("bin", b"\0\1\2needle\377\n")
    assert "\0" not in told(here, "grep", pattern="needle")


@pytest.mark.engine
def test_where_there_is_ripgrep_what_gitignore_names_is_left_out(boxes: Callable[[str], Box]) -> None:
    here = Here(boxes("docker"))
    here.sh("git init -q .; echo out/ >.gitignore; mkdir out src; echo needle | tee out/a src/b >/dev/null")
    assert hits(here, "needle") == ["src/b:1:needle"]
    assert hits(here, "needle", path="out") == ["out/a:1:needle"]


@pytest.mark.parametrize(
    ("written", "posix"),
    [
        (r"\d+", "[0-9]+"),
        (r"\D\W\S", "[^0-9][^[:alnum:]_][^[:space:]]"),
        (r"[\d\w-]", "[0-9[:alnum:]_-]"),
        (r"[^\]\s]", "[^][:space:]]"),
        (r"[a\-z]", "[az-]"),
        (r"[\^a]", "[a^]"),
        (r"[\.\\/]", r"[.\/]"),
        (r"[]a]", "[]a]"),
        ("[[:alpha:]]", "[[:alpha:]]"),
        (r"\.\[\(\\d", r"\.\[\(\\d"),
        ("(?:a|b)c", "(a|b)c"),
        ("a*?b+?c??d{2}?", "a*b+c?d{2}"),
        (r"a\?b", r"a\?b"),
        (r"a\tb[\t]", "a\tb[\t]"),
        (r"\-\"\/\@\<\b", r'-"/@\<\b'),
        ("plain", "plain"),
    ],
)
def test_an_expression_is_said_in_posix(written: str, posix: str) -> None:
    assert extended(written) == posix


# --- what they share ----------------------------------------------------------------------------------------------


def test_shortening_keeps_head_and_tail_and_counts_what_is_missing() -> None:
    assert shorten("a\nb\nc\n", lines=3, characters=6) == "a\nb\nc\n"
    assert shorten("a\nb\nc", lines=3, characters=5) == "a\nb\nc"
    assert shorten("") == ""
    assert shorten("1\n2\n3\n4\n5\n", lines=4) == "1\n2\n\n[… 2 characters left out …]\n4\n5\n"
    assert shorten("1\n2\n3\n4\n5", lines=4) == "1\n2\n\n[… 2 characters left out …]\n4\n5"
    assert shorten("0123456789", characters=4) == "01\n[… 6 characters left out …]\n89"
    lines = "".join(f"{number:09}\n" for number in range(10_000))
    short = shorten(lines, lines=100, characters=200)
    assert short == f"{lines[:100]}\n[… {len(lines) - 200} characters left out …]\n{lines[-100:]}"
    assert shorten("\r\u2028\f" * 5000) == "\r\u2028\f" * 5000, "only newlines end lines"
    assert shorten("x\n" * RESULT_LINES) == "x\n" * RESULT_LINES


def test_arguments_are_checked_field_by_field() -> None:
    bash = tools.ALL["bash"]
    with pytest.raises(ToolFailed, match=r"bash: command: Field required \(it takes command, timeout\)"):
        bash.parse({})
    with pytest.raises(ToolFailed, match=r"command: .*valid string; timeout: .*greater than or equal to 1"):
        bash.parse({"command": 3, "timeout": 0})
    with pytest.raises(ToolFailed, match="cwd: Extra inputs are not permitted"):
        bash.parse({"command": "x", "cwd": "/"})
    with pytest.raises(ToolFailed, match="at least 1 character"):
        bash.parse({"command": ""})
    with pytest.raises(ToolFailed, match=r'not a JSON object: \{"command"'):
        bash.parse('{"command": ')
    with pytest.raises(ToolFailed, match="not a JSON object: None"):
        bash.parse(None)
    with pytest.raises(ToolFailed, match="output_mode: Input should be 'content'"):
        tools.ALL["grep"].parse({"pattern": "x", "output_mode": "all"})
    assert bash.parse({"command": "x", "timeout": "5"}).model_dump() == {"command": "x", "timeout": 5}


@pytest.mark.parametrize("value", ["a\0b", "half \ud800"])
def test_what_no_program_can_be_given_is_refused_before_it_is_tried(value: str) -> None:
    for tool, arguments in {
        "bash": {"command": value},
        "read": {"file_path": value},
        "write": {"file_path": "x", "content": value},
        "glob": {"pattern": value},
    }.items():
        with pytest.raises(ToolFailed, match="not allowed"):
            tools.ALL[tool].parse(arguments)


@pytest.mark.parametrize("name", tools.ALL)
def test_every_schema_is_an_object_with_described_fields(name: str) -> None:
    schema = tools.ALL[name].schema
    assert schema.name == name
    assert schema.description
    assert schema.parameters["type"] == "object"
    assert schema.parameters["additionalProperties"] is False
    assert "title" not in schema.parameters
    assert all("title" not in field for field in schema.parameters["properties"].values())


def test_an_agent_gets_the_tools_it_names_in_our_order() -> None:
    assert [tool.name for tool in tools.offered(None)] == list(tools.ALL) == list(get_args(ToolName))
    assert [tool.name for tool in tools.offered(["grep", "bash", "unknown"])] == ["bash", "grep"]
    assert tools.offered([]) == []


def test_a_question_parks_the_run() -> None:
    class NoHands:
        def exec(self, argv: Sequence[str], *, stdin: bytes = b"", timeout: int = 60, live: bool = False) -> Finished:
            raise AssertionError("asking needs no sandbox")

    ask = tools.ALL["ask"]
    with pytest.raises(Asks, match=r"Which one\?") as caught:
        ask.run(ask.parse({"question": "Which one?"}), NoHands())
    assert caught.value.question == "Which one?"
    assert not ask.in_sandbox
