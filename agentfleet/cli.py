"""The command line. Apart from `up`, `down` and the folder check of `apply` it talks to the server over REST."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from agentfleet import background, children, creds_cli, deliveries_cli, folders, home, ports, roles, show
from agentfleet import doctor as checks
from agentfleet import up as box
from agentfleet.client import Client, NoServer, ServerSays
from agentfleet.doctor.findings import Check
from runs.sandbox.base import Refused

app = typer.Typer(help="Run LLM agents unattended, in sandboxes.", no_args_is_help=True, pretty_exceptions_enable=False)

new = typer.Typer(help="Write something to begin with.", no_args_is_help=True)

Home = Annotated[Path | None, typer.Option("--home", help="Default: $AGENTFLEET_HOME, else ~/.agentfleet.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the server's answer as it is.")]


def name(value: str) -> str:
    """An id or a name as part of a path, where a slash would ask for something else."""
    if not re.fullmatch(r"[\w-]+", value):
        raise typer.BadParameter("letters, digits, dashes and underscores")
    return value


def name_or_none(value: str) -> str:
    return name(value) if value else ""


class Mode(StrEnum):
    """As `runs.models.InputMode`, which needs Django."""

    QUEUE = "queue"
    FOLLOWUP = "followup"
    STEER = "steer"
    INTERRUPT = "interrupt"


class Template(StrEnum):
    """The folders of agent_templates/."""

    DEV = "dev"
    REVIEWER = "reviewer"
    DEVOPS = "devops"
    CUSTOM = "custom"


PausedAgent = Annotated[str, typer.Argument(metavar="[AGENT]", callback=name_or_none, help="Without one: all.")]
RunId = Annotated[str, typer.Argument(metavar="RUN", callback=name)]


def main() -> None:
    """Every fault is one sentence on stderr and an exit code: 1 refused, 2 wrong usage, 3 no server, 4 not over."""
    try:
        app()
    except ServerSays as error:
        fail(f"{error}", 1)
    except NoServer as error:
        fail(str(error), 3)
    except (children.CannotStart, folders.InTheWay, home.HomeError, Refused) as error:
        fail(str(error), 1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def fail(sentence: str, code: int) -> NoReturn:
    print(f"agentfleet: {sentence}", file=sys.stderr)
    raise SystemExit(code)


def folder_of(chosen: Path | None) -> Path:
    """The home to work with, for this process and its children."""
    if chosen is not None:
        os.environ["AGENTFLEET_HOME"] = str(chosen.absolute())
    return home.path()


@app.command()
def up(
    home: Home = None,
    host: Annotated[str, typer.Option(help="Address to listen on; beyond loopback others can reach it.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.", min=0, max=65535)] = 8000,
    detach: Annotated[bool, typer.Option("--detach", help="Return once it serves.")] = False,
    no_restart: Annotated[bool, typer.Option("--no-restart", help="Leave a process that dies dead.")] = False,
) -> None:
    """Start everything on this machine: database, Redis, web, worker, schedules."""
    folder = folder_of(home)
    if detach:
        again = [sys.executable, "-m", "agentfleet", "up", "--host", host, "--port", str(port)]
        print(background.detach([*again, *(["--no-restart"] if no_restart else [])], folder))
        return
    box.become(folder, host, port or ports.free_port(), restart=not no_restart)


@app.command()
def down(home: Home = None) -> None:
    """Stop what `up` started; runs go on at the next `up`."""
    folder = folder_of(home)
    print("agentfleet is down" if background.down(folder) else f"nothing is up for {folder}")


@app.command()
def doctor(
    home: Home = None,
    port: Annotated[int, typer.Option(help="The one `up` would take.", min=1, max=65535)] = 8000,
    project: Annotated[
        Path | None, typer.Option(help="A project folder: what is wrong with it, and what its agents lack here.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the list of checks.")] = False,
) -> None:
    """Look at everything a run needs; say what is wrong and what to do. Exit 0 only if all is well."""
    folder = folder_of(home)
    checks.adopt_environment(folder)
    done = checks.examine(folder, port) if project is None else examine_project(project, folder)
    if as_json:
        print(json.dumps([asdict(check) for check in done]))
    else:
        for check in done:
            print(f"{check.word:<6} {check.name:<12} {check.says}")
    raise SystemExit(0 if all(check.ok for check in done) else 1)


@app.command()
def apply(
    directory: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="A project folder.")] = Path(),
    project: Annotated[str, typer.Option(help="Its name; default: the folder's.")] = "",
    network: Annotated[str | None, typer.Option(help="For imported agents that say nothing about it.")] = None,
) -> None:
    """Make the server's agents match a folder; print what changed. Faults are listed all at once."""
    from agents import manifest  # noqa: PLC0415 - of all commands this one reads folders

    name = project or directory.absolute().name
    try:
        files = manifest.read_folder(directory)
        reading = manifest.parse(files, project=name, network=network)
    except manifest.Faulty as error:
        fail("\n".join(["nothing was applied:", *(f"  {fault}" for fault in error.faults)]), 1)
    bundle = {path: base64.b64encode(content).decode() for path, content in files.items()}
    answer = Client.here().call("PUT", f"projects/{name}", {"files": bundle, "network": network})
    told = [manifest.Fault(**warning) for warning in answer["warnings"]]
    for warning in dict.fromkeys((*manifest.left_behind(directory), *reading.warnings, *told)):
        print(f"warning: {warning}", file=sys.stderr)
    show.changes(answer)


@app.command()
def export(
    directory: Annotated[Path, typer.Argument(file_okay=False, help="An empty folder, or one to be made.")],
    project: Annotated[
        str, typer.Option(help="Its name; default: the folder's. - for the agents made in the admin.")
    ] = "",
    force: Annotated[bool, typer.Option("--force", help="Write into a folder that is not empty.")] = False,
) -> None:
    """Write a project's agents, as the server has them, into a folder that `apply` takes."""
    name = project or directory.absolute().name
    answer = Client.here().call("GET", f"projects/{name}")
    files = {path: base64.b64decode(content) for path, content in answer["files"].items()}
    folders.write_project(directory, files, force=force)
    print(f"{len(files)} files of project {name} in {directory}")


@app.command()
def run(
    agent: Annotated[str, typer.Argument(callback=name)],
    prompt: Annotated[str, typer.Argument(help="A task in words; without it the agent looks for work.")] = "",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Show what happens until it is over.")] = False,
    wait: Annotated[float | None, typer.Option(help="Seconds to wait for the answer, and print that.", min=0)] = None,
    as_json: AsJson = False,
) -> None:
    """Start an agent by hand."""
    client = Client.here()
    made = client.call("POST", f"agents/{agent}/run", {"input": prompt})
    if follow:
        watch(client, made["taskId"])
    elif wait is not None:
        await_answer(client, made["taskId"], wait, as_json=as_json)
    else:
        print(json.dumps(made) if as_json else made["taskId"])


@app.command()
def ps(
    everything: Annotated[bool, typer.Option("--all", "-a", help="Ended ones too.")] = False,
    as_json: AsJson = False,
) -> None:
    """What runs and what waits, and for what. With --all the newest hundred, whatever became of them."""
    client = Client.here()
    found = client.call("GET", "tasks", params={"limit": 100})["tasks"] if everything else live(client)
    once = {task["id"]: task for task in found}  # one that moved on meanwhile is listed under both statuses
    chosen = [once[run_id] for run_id in sorted(once, reverse=True)]
    if as_json:
        print(json.dumps(chosen))
    else:
        show.tasks(chosen)


@app.command()
def logs(
    run_id: RunId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Stay until it is over.")] = False,
    as_json: AsJson = False,
) -> None:
    """What happened in a run."""
    client = Client.here()
    if follow:
        watch(client, run_id, as_json=as_json)
        return
    after = 0
    while page := client.call("GET", f"tasks/{run_id}/events", params={"since": after})["events"]:
        for event in page:
            print(json.dumps(event)) if as_json else show.event(event)
        after = page[-1]["id"]


@app.command()
def cancel(run_id: RunId) -> None:
    """Stop a run."""
    Client.here().call("POST", f"tasks/{run_id}/cancel")
    print(f"{run_id} is being canceled")


@app.command()
def respond(run_id: RunId, message: str) -> None:
    """Answer a run that waits for input."""
    Client.here().call("POST", f"tasks/{run_id}/respond", {"message": message})
    print(f"{run_id} goes on")


@app.command()
def send(
    run_id: RunId,
    message: str,
    mode: Annotated[Mode, typer.Option(help="When it is heard; see docs/api.md.")] = Mode.FOLLOWUP,
    as_json: AsJson = False,
) -> None:
    """Say something to a run; if it is over, another goes on from where it ended."""
    answer = Client.here().send(run_id, message, mode)
    if as_json:
        print(json.dumps(answer))
    else:
        print(f"{answer['taskId']} has it: {answer['outcome']}")


@app.command()
def pause(agent: PausedAgent = "") -> None:
    """Start nothing new, of one agent or of the whole fleet; what has begun goes on."""
    Client.here().call("POST", f"agents/{agent}/pause" if agent else "pause")
    print(f"{agent or 'the fleet'} is paused")


@app.command()
def resume(agent: PausedAgent = "") -> None:
    """Take work again; ticks that passed are not made up for."""
    Client.here().call("POST", f"agents/{agent}/resume" if agent else "resume")
    print(f"{agent or 'the fleet'} takes work again")


@app.command()
def login() -> None:
    """Print a link that logs in once."""
    client = Client.here()
    print(client.url + client.call("POST", "login-links")["path"])


@new.command("agent")
def make_agent(
    name: Annotated[str, typer.Argument(callback=name)],
    directory: Annotated[Path, typer.Argument(file_okay=False, help="The project folder.")] = Path(),
    template: Annotated[Template, typer.Option(help="What it begins with.")] = Template.CUSTOM,
) -> None:
    """Write an agent's folder to begin with; it can be applied as it is."""
    from agentfleet import new_agent  # noqa: PLC0415 - reads folders, as few commands do
    from agents.manifest import Faulty  # noqa: PLC0415

    try:
        made = new_agent.make(directory, name, template)
    except Faulty as error:
        fail(f"nothing was written: {error}", 1)
    for path in made.written:
        print(path)
    for note in made.notes:
        print(f"note: {note}", file=sys.stderr)


app.command("deliveries")(deliveries_cli.deliveries)
app.command("replay-delivery")(deliveries_cli.replay_delivery)
app.command("simulate")(deliveries_cli.simulate)
app.add_typer(creds_cli.app, name="creds")
app.add_typer(new, name="new")
app.command("web", hidden=True, help="The web process alone, for fleets.")(roles.web)
app.command("worker", hidden=True, help="One worker process alone, for fleets.")(roles.worker)
app.command("beat", hidden=True, help="The schedules' clock alone, one per fleet.")(roles.beat)
app.command("gateway", hidden=True, help="What the sandboxes of one host may ask, alone.")(roles.gateway)


def examine_project(project: Path, home: Path) -> list[Check]:
    from agentfleet.doctor.project import examine  # noqa: PLC0415 - as in `make_agent`

    return examine(project, home)


def live(client: Client) -> Iterator[dict[str, Any]]:
    """Every task that is not over, however many newer ones are."""
    for status in ("pending", "processing", "waiting"):
        cursor: str | None = ""
        while cursor is not None:
            page = client.call("GET", "tasks", params={"status": status, "limit": 200, "cursor": cursor})
            yield from page["tasks"]
            cursor = page["next_cursor"]


def watch(client: Client, run_id: str, *, as_json: bool = False) -> None:
    """Show a run until it is over; exit 0 only if it finished."""
    signal.signal(signal.SIGINT, lambda *_: sys.exit(130))
    for event in client.follow(run_id):
        print(json.dumps(event), flush=True) if as_json else show.event(event)
    task: dict[str, Any] = client.steadily("GET", f"tasks/{run_id}")["task"]
    if not as_json:
        show.fault(task)
    raise SystemExit(0 if task["status"] == "finished" else 1)


def await_answer(client: Client, run_id: str, seconds: float, *, as_json: bool) -> None:
    """Print what a run answers and nothing else; exit 0 only if it finished, 4 if it has not ended."""
    signal.signal(signal.SIGINT, lambda *_: sys.exit(130))
    try:
        task = client.wait_for(run_id, seconds, or_question=True)
    except TimeoutError as error:
        fail(str(error), 4)
    if as_json:
        print(json.dumps(task))
    elif task["output"] is not None:
        print(task["output"])
    if task["status"] == "waiting":
        fail(f"{run_id} asks: {task['question']}", 4)
    if task["error"]:
        fail(f"{run_id} failed, {task['error']['code']}: {task['error']['message']}", 1)
    raise SystemExit(0 if task["status"] == "finished" else 1)
