"""How the command line writes runs and their events."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

console = Console(highlight=False, soft_wrap=True)

WIDE = 240  # characters of a table that goes into a pipe: nothing of it is cut

# Of a tool's arguments, the first there is says what it is about.
TELLING = (
    *("command", "file_path", "pattern", "provider", "resource_key", "target_agent", "call_id"),
    *("name", "source", "source_agent", "text", "value", "action"),
)
COLORS = {
    "finished": "green",
    "failed": "red",
    "canceled": "yellow",
    "waiting": "magenta",
    "processing": "cyan",
}


def tasks(rows: list[dict[str, Any]]) -> None:
    if not rows:
        console.print("nothing runs and nothing waits")
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("RUN", no_wrap=True, min_width=max(len(row["id"]) for row in rows))  # half an id names no run
    for heading in ("AGENT", "STATUS", "WHY", "SINCE", "TURNS", "TOKENS", "DOING"):
        table.add_column(heading)
    for row in rows:
        status = row["status"] + (f" ({row['wait_reason']})" if row["wait_reason"] else "")
        doing = row["question"] or row["status_text"] or (row["error"] or {}).get("code", "")
        tokens = row["token_input"] + row["token_output"]
        cells = [row["id"], row["agent_name"], Text(status, COLORS.get(row["status"], "")), row["trigger"]]
        table.add_row(*cells, row["created_at"][11:19], str(row["iterations"]), str(tokens), Text(doing[:60]))
    whole = console if console.is_terminal else Console(highlight=False, width=WIDE)
    whole.print(table)


def changes(applied: dict[str, Any]) -> None:
    """What `apply` did, a line each."""
    for word in ("created", "updated", "deactivated"):
        for name in applied[word]:
            console.print(f"{word} agent {name}")
    for name in applied["sources"]:
        console.print(f"set webhook source {name}")
    for name in applied["outgoing"]:
        console.print(f"set outgoing webhook {name}")
    if applied["unchanged"]:
        console.print(f"unchanged: {', '.join(applied['unchanged'])}")


def event(happened: dict[str, Any]) -> None:
    """One event as a line, or its output as it was printed."""
    clock = datetime.fromisoformat(happened["created_at"]).strftime("%H:%M:%S.%f")[:-3]
    line = Text(f"{clock} ", "dim")
    for text, style in words(happened["type"], happened["data"]):
        line.append(text, style)
    console.print(line)


def words(kind: str, data: dict[str, Any]) -> list[tuple[str, str]]:
    """An event in words, piece by piece with its style."""
    match kind:
        case "status.change":
            why = f" ({data['reason']})" if data.get("reason") else ""
            return [(f"{data['to']}{why}", f"bold {COLORS.get(data['to'], '')}".strip())]
        case "model.start":
            return [(f"turn {data['turn']}: asking {data['model']}", "blue")]
        case "model.turn":
            used = f"   [{data['usage']['input']} in, {data['usage']['output']} out]"
            said = data["text"] or ", ".join(call["name"] for call in data["toolCalls"])
            return [(said, ""), (used, "dim")]
        case "tool.start":
            asked = data["toolInput"]
            shown = next((asked[key] for key in TELLING if asked.get(key)), "")
            return [(f"{data['toolName']} ", "bold"), (str(shown), "")]
        case "output":
            return [("  " + data["text"].rstrip("\n").replace("\n", "\n               "), "")]
        case "tool.end":
            sign = ("ok", "green") if data["success"] else ("failed", "red")
            return [(f"{data['toolName']} ", "bold"), sign, (f" after {data['durationMs']} ms", "dim")]
        case "status.text":
            return [("status: ", "cyan"), (data["text"], "")]
        case "ask":
            return [("asks: ", "magenta"), (data["question"], "")]
        case "respond":
            return [("answer: ", "magenta"), (data["message"], "")]
    return logged(kind, data)


def logged(kind: str, data: dict[str, Any]) -> list[tuple[str, str]]:
    """What an agent's own program says, and whatever has no words of its own."""
    match kind:
        case "agent.text":
            return [(data["text"], "")]
        case "agent.tool":
            return [(f"{data['toolName']} ", "bold"), (data["state"], "dim"), (f" {data.get('cmd', '')}", "")]
        case "log" | "warning":
            return [(f"{data.get('level', kind)}: ", "yellow"), (data.get("msg") or data.get("message", ""), "")]
    details = "  ".join(f"{key}={value}" for key, value in data.items())
    return [(kind, "dim"), (f"  {details}" if details else "", "dim")]


def fault(task: dict[str, Any]) -> None:
    """Why a run failed, in full; an answer was shown when it was given."""
    if task["error"]:
        console.print(Text(f"{task['error']['code']}: {task['error']['message']}", "bold red"))


def credentials(rows: list[dict[str, Any]]) -> None:
    if not rows:
        console.print("there are no credentials, and nobody names one")
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("CREDENTIAL", "STATE", "STORE", "FIELDS", "USED BY"):
        table.add_column(heading)
    for row in rows:
        state = Text(row["state"], "green" if row["state"] == "there" else "red")
        cells = [row["store"], ", ".join(row["fields"]), ", ".join(row["used_by"])]
        table.add_row(Text(row["reference"]), state, *map(Text, cells))
    whole = console if console.is_terminal else Console(highlight=False, width=WIDE)
    whole.print(table)
