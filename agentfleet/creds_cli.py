"""`agentfleet creds`: values come from a prompt, a file or standard input, never from an argument, and go in only."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from agentfleet import bootstrap, home, show
from agentfleet.client import Client, NoServer

if TYPE_CHECKING:
    from agents.credentials import CredentialType, Reference

app = typer.Typer(help="Credentials: add, list, check and remove them.", no_args_is_help=True)


class Kept(StrEnum):
    FILES = "files"  # of this home
    DATABASE = "database"  # of the server, encrypted


Named = Annotated[str, typer.Argument(metavar="REF", help="type or type:instance, as in github_token:bot.")]
In = Annotated[Kept, typer.Option("--store", help="files: in this home. database: on the server, encrypted.")]
AsJson = Annotated[bool, typer.Option("--json", help="As JSON.")]


@app.command("add")
def add(
    reference: Named,
    field: Annotated[list[str] | None, typer.Option(help="Only this one, by name; more than once.")] = None,
    from_file: Annotated[list[str] | None, typer.Option(help="name=path: the value is in that file.")] = None,
    store: In = Kept.FILES,
) -> None:
    """Keep a credential. Asks for each field; or reads standard input: one value, or a JSON object of several."""
    wanted = named(reference)
    kind = type_of(wanted)
    values = read_files(from_file or [])
    asked = [name for name in fields_of(kind, field or []) if name not in values]
    if asked and not (values and not field):
        values |= prompted(kind, asked) if sys.stdin.isatty() else piped(asked)
    check_values(kind, values)
    if store is Kept.FILES:
        local_files().put(wanted, values)
    else:
        Client.here().call("PUT", f"credentials/{wanted}", {"values": values})
    print(f"{wanted} is kept: {', '.join(sorted(values))}")
    if kind is None:
        print(f"note: type {wanted.type} is not known (see `agentfleet creds types`): no variables", file=sys.stderr)


@app.command("rm")
def rm(reference: Named, store: In = Kept.FILES) -> None:
    """Forget a credential."""
    wanted = named(reference)
    if store is Kept.FILES:
        removed = local_files().remove(wanted)
    else:
        removed = bool(Client.here().call("DELETE", f"credentials/{wanted}")["removed"])
    if not removed:
        fail(f"there is no {wanted} in {store.value}")
    print(f"{wanted} is forgotten")


@app.command("ls")
def ls(as_json: AsJson = False) -> None:
    """What there is, who uses it and what is missing. Without a server: the files of this home."""
    try:
        rows = Client.here().call("GET", "credentials")["credentials"]
    except NoServer:
        rows = list(local_rows())
    if as_json:
        print(json.dumps(rows))
    else:
        show.credentials(rows)


@app.command("types")
def types(name: Annotated[str, typer.Argument(metavar="TYPE")] = "") -> None:
    """The types there are, or all about one of them."""
    ready()
    from agents import credentials  # noqa: PLC0415

    if not name:
        for kind in sorted(credentials.known_types().values(), key=lambda kind: kind.name):
            print(f"{kind.name:<26} {kind.help}")
        return
    known = credentials.type_of(name)
    if known is None:
        fail(f"there is no type {name}: see `agentfleet creds types`")
    print("\n".join(described(known)))


@app.command("check")
def check(reference: Annotated[str, typer.Argument(metavar="REF", help="Default: all there are.")] = "") -> None:
    """Whether it is complete and whether the service it is for takes it. Exit 0 only if nothing is wrong."""
    bootstrap.set_up_django()
    from agents.credentials import references  # noqa: PLC0415

    chosen = [named(reference)] if reference else sorted(references.kept("default"))
    found = [(one, fault_of(one)) for one in chosen]
    for one, fault in found:
        print(f"{one}: {fault or 'ok'}")
    raise SystemExit(1 if any(fault for _, fault in found) else 0)


@app.command("rotate")
def rotate() -> None:
    """Make a new key for what the database keeps and encrypt everything with it. May be broken off and repeated."""
    bootstrap.set_up_django()
    from agents.credentials import CredentialError, cipher, rows  # noqa: PLC0415

    try:
        count = rows.rotate()
    except CredentialError as error:
        fail(str(error))
    print(f"{count} values are encrypted with a new key in {cipher.key_file()}")


# --- values -----------------------------------------------------------------------------------------------------


def fields_of(kind: CredentialType | None, chosen: list[str]) -> list[str]:
    if any("=" in name for name in chosen):
        fail("a value in an argument could be read by everybody here: name the field alone, and be asked for it")
    if chosen or kind is None:
        return chosen or ["token"]
    return [one.name for one in kind.field_sets[0]]


def prompted(kind: CredentialType | None, names: list[str]) -> dict[str, str]:
    known = kind.fields if kind else {}
    values: dict[str, str] = {}
    for name in names:
        about = known.get(name)
        optional = about is not None and about.optional
        if about is not None and about.lines:
            path = typer.prompt(f"file with {name}", default="" if optional else None, show_default=False)
            values |= read_files([f"{name}={path}"]) if path else {}
            continue
        said = typer.prompt(
            f"{name} (optional)" if optional else name,
            default="" if optional else None,
            hide_input=about is None or about.secret,
            show_default=False,
        )
        values |= {name: said} if said else {}
    return values


def piped(names: list[str]) -> dict[str, str]:
    """One value, whole; or an object with several."""
    text = sys.stdin.read()
    try:
        several = json.loads(text)
    except ValueError:
        several = None
    if isinstance(several, dict) and set(several) <= set(names) and all(isinstance(v, str) for v in several.values()):
        return several
    if len(names) > 1:
        fail(f"standard input must be a JSON object with {', '.join(names)}; or choose one with --field")
    return {names[0]: text}


def read_files(named_files: list[str]) -> dict[str, str]:
    values = {}
    for text in named_files:
        name, equals, path = text.partition("=")
        if not (name and equals):
            fail(f"--from-file {text}: write name=path")
        try:
            values[name] = Path(path).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            fail(f"{path} cannot be read: {error}")
    return values


def check_values(kind: CredentialType | None, values: dict[str, str]) -> None:
    from agents.credentials import is_name, validation  # noqa: PLC0415

    if bad := [name for name in values if not is_name(name)]:
        fail(f"{bad[0]!r} is no name of a field")
    if empty := [name for name, value in values.items() if not value.strip()]:
        fail(f"{empty[0]} has no value")
    if not values:
        fail("there is no value to keep")
    stripped = {name: value.strip() for name, value in values.items()}
    if kind is not None and (fault := validation.shape_fault(kind, stripped)):
        fail(f"this is no {kind.name}: {fault}")


def fault_of(reference: Reference) -> str:
    import httpx  # noqa: PLC0415

    from agents import credentials  # noqa: PLC0415
    from agents.credentials import CredentialError, validation  # noqa: PLC0415

    try:
        found = credentials.find(reference)
        kind = credentials.type_of(reference.type)
    except CredentialError as error:
        return str(error)
    if found is None:
        return "no store has it"
    if kind is None:
        return ""
    with httpx.Client() as http:
        return validation.fault(kind, found.values, http)


# --- places -----------------------------------------------------------------------------------------------------


def ready() -> None:
    """The settings, without the database."""
    bootstrap.use_settings()


def named(text: str) -> Reference:
    ready()
    from agents.credentials import CredentialError, Reference  # noqa: PLC0415

    try:
        return Reference.parse(text)
    except CredentialError as error:
        fail(str(error))


def type_of(reference: Reference) -> CredentialType | None:
    from agents import credentials  # noqa: PLC0415

    try:
        return credentials.type_of(reference.type)
    except credentials.CredentialError as error:
        fail(str(error))


def local_files() -> Any:
    from agents.credentials.files import FileStore  # noqa: PLC0415

    return FileStore(home.ensure(home.path()) / "credentials")


def local_rows() -> Iterator[dict[str, Any]]:
    ready()
    for reference in local_files().list():
        fields = list(local_files().fields(reference.type, reference.instance))
        yield {"reference": str(reference), "state": "there", "store": "files", "fields": fields, "used_by": []}


def described(kind: CredentialType) -> Iterator[str]:
    yield kind.help
    for number, fields in enumerate(kind.field_sets):
        yield "fields:" if number == 0 else "or:"
        for one in fields:
            notes = [
                "optional" if one.optional else "",
                f"${one.env}" if one.env else "",
                "" if one.secret else "shown",
            ]
            yield f"  {one.name:<22} {', '.join(note for note in notes if note)}".rstrip()
    if kind.host_only:
        yield "agentfleet alone uses it: no sandbox gets it"


def fail(sentence: str) -> NoReturn:
    print(f"agentfleet: {sentence}", file=sys.stderr)
    raise SystemExit(1)
