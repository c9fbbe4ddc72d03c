"""Deliveries on the command line: what came, why it started nothing, once more, and what a payload would start."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from agentfleet.client import Client
from agentfleet.show import WIDE, console

AsJson = Annotated[bool, typer.Option("--json", help="Print the server's answer as it is.")]
COLORS = {"started": "green", "skipped": "yellow", "held": "magenta", "limited": "red", "loop": "red"}
AT_ONCE = 100  # replays of one request


def deliveries(
    delivery_id: Annotated[str, typer.Argument(metavar="[ID]", help="One of them, whole.")] = "",
    outcome: Annotated[list[str] | None, typer.Option(help="Only these, as in no_match or held.")] = None,
    source: Annotated[str | None, typer.Option(help="Only those of this source.")] = None,
    event: Annotated[str | None, typer.Option(help="Only this event.")] = None,
    sender: Annotated[str | None, typer.Option(help="Only those of this sender.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=200)] = 20,
    as_json: AsJson = False,
) -> None:
    """Webhooks that came, newest first, and what became of them; or one of them with the reasons of each trigger."""
    client = Client.here()
    if delivery_id:
        answer = client.call("GET", f"deliveries/{quote(delivery_id, safe='')}")
        print(json.dumps(answer)) if as_json else show_one(answer)
        return
    asked = {"outcome": outcome, "source": source, "event": event, "sender": sender, "limit": limit}
    found = client.call("GET", "deliveries", params={key: value for key, value in asked.items() if value})
    print(json.dumps(found["deliveries"])) if as_json else show_list(found["deliveries"])


def replay_delivery(
    delivery_ids: Annotated[list[str], typer.Argument(metavar="ID…")],
    as_json: AsJson = False,
) -> None:
    """Decide deliveries anew, in the order in which they came, with the triggers as they are now."""
    client, done = Client.here(), []
    ids = sorted(set(delivery_ids))
    for start in range(0, len(ids), AT_ONCE):
        done += client.call("POST", "deliveries/replay", {"ids": ids[start : start + AT_ONCE]})["deliveries"]
    if as_json:
        print(json.dumps(done))
    else:
        for one in done:
            console.print(Text(f"{one['id']}: {', '.join(one['runs']) or one['reason']}"))
    raise SystemExit(0 if all(one["ok"] for one in done) else 1)


def simulate(
    source: Annotated[str, typer.Argument(help="The name of a webhook source.")],
    file: Annotated[Path, typer.Argument(dir_okay=False, allow_dash=True, help="The payload; - is standard input.")],
    event: Annotated[str, typer.Option(help="For the header in which the provider says it.")] = "",
    header: Annotated[list[str] | None, typer.Option(help="name=value; more than once.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say what a webhook would start, and what its agents would be told. Nothing is stored, nothing is started."""
    body = sys.stdin.buffer.read() if str(file) == "-" else read(file)
    headers = dict(pair_of(text) for text in header or [])
    asked = {"source": source, "body": body.decode(errors="replace"), "event": event, "headers": headers}
    answer = Client.here().call("POST", "webhooks/simulate", asked)
    if as_json:
        print(json.dumps(answer))
        return
    show_explanation(answer)
    for agent, prompt in answer["prompts"].items():
        console.print(Text(f"\n--- what {agent} would be told ---", "bold"))
        console.print(Text(prompt))


def read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise typer.BadParameter(f"{file} cannot be read: {error.strerror}") from error


def pair_of(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise typer.BadParameter(f"{text!r}: write --header name=value")
    return name, value


# --- how it is written ------------------------------------------------------------------------------------------


def show_list(rows: list[dict[str, Any]]) -> None:
    if not rows:
        console.print("nothing has come")
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("DELIVERY", no_wrap=True, min_width=max(len(row["id"]) for row in rows))
    for heading in ("CAME", "SOURCE", "EVENT", "SENDER", "OUTCOME", "WHY"):
        table.add_column(heading)
    for row in rows:
        said = [row["received_at"][:19], row["source"] or "", row["event"], row["sender"]]
        why = f"{row['matched']} matched" if row["matched"] else row["reason"]
        outcome = Text(row["outcome"], COLORS.get(row["outcome"], ""))
        table.add_row(row["id"], *map(Text, said), outcome, Text(why[:100]))
    whole = console if console.is_terminal else Console(highlight=False, width=WIDE)
    whole.print(table)


def show_one(answer: dict[str, Any]) -> None:
    row = answer["delivery"]
    console.print(Text(f"{row['id']}  {row['outcome']}", f"bold {COLORS.get(row['outcome'], '')}".strip()))
    lines = [
        ("came", row["received_at"]),
        ("source", row["source"]),
        ("event", row["event"]),
        ("sender", row["sender"]),
        ("reason", row["reason"] if row["outcome"] != "started" else ""),
        ("held until", row["held_until"]),
        ("replay of", row["replay_of"]),
        ("same as", row["duplicate_of"]),
        ("replays", ", ".join(answer["replays"])),
        ("runs", ", ".join(answer["runs"])),
    ]
    for label, text in lines:
        if text:
            console.print(Text(f"{label + ':':<12}{text}"))
    for decision in row["decisions"]:
        became = decision.get("run") or decision.get("reason")
        console.print(Text(f"{'then:':<12}{decision['agent']} {decision['index'] + 1}: {became}"))
    console.print(Text("\nwith the triggers as they are now:", "bold"))
    show_explanation(answer["now"])


def show_explanation(explained: dict[str, Any]) -> None:
    if explained["fault"]:
        console.print(Text(f"nothing an agent could act on: {explained['fault']}", "red"))
        return
    console.print(Text(f"event {explained['event']}"))
    if guard := explained["guard"]:
        console.print(Text(f"starts nothing, {guard['outcome']}: {guard['reason']}", "red"))
    for agent, run_id in explained["resumed"].items():
        console.print(Text(f"{run_id} of {agent} waits for it and goes on", "green"))
    for trigger in explained["triggers"]:
        word, color = ("matches", "green") if trigger["matched"] else ("no match", "dim")
        why = f": {trigger['reason']}" if trigger["matched"] and trigger["reason"] else ""
        console.print(Text(f"{trigger['agent']} {trigger['index'] + 1} on {trigger['source']}: {word}{why}", color))
        for verdict in trigger["filters"]:
            console.print(Text(f"  {'+' if verdict['passed'] else '-'} {verdict['sentence']}"))
    if explained["left_out"]:
        console.print(f"{explained['left_out']} more triggers")
