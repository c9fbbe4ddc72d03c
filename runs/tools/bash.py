"""Run a shell command."""

from __future__ import annotations

from pydantic import Field

from runs.sandbox.base import OUTPUT_LIMIT, Ending
from runs.tools.base import Arguments, Hands, Result, Tool, ToolFailed

LONGEST_COMMAND = 100_000  # bytes; the kernel takes no argument above 128 KiB

# Each call is a fresh shell; what should last is left with `setenv`. bash where the image has it, else sh.
ENTRY = """
command=$1
command -v al-bash-init.sh >/dev/null && command=". al-bash-init.sh
$command"
command -v bash >/dev/null && exec bash -c "$command"
exec sh -c "$command"
"""


class BashArguments(Arguments):
    command: str = Field(description="The command to run.", min_length=1)
    timeout: int = Field(default=600, ge=1, le=86_400, description="Seconds after which it is killed.")


def run(arguments: BashArguments, hands: Hands) -> Result:
    if len(arguments.command.encode()) > LONGEST_COMMAND:
        raise ToolFailed(f"the command is longer than {LONGEST_COMMAND} bytes: write it to a file and run that")
    argv = ["sh", "-c", ENTRY, "bash", arguments.command]
    done = hands.exec(argv, timeout=arguments.timeout, live=True)
    notes = {
        Ending.TIMEOUT: f"[killed: still running after {arguments.timeout} s]",
        Ending.OUTPUT_LIMIT: f"[killed: printed more than {OUTPUT_LIMIT // (1024 * 1024)} MiB]",
        Ending.EXITED: f"[exit code {done.exit_code}]" if done.exit_code else "",
    }
    if note := notes[done.ending]:
        text = f"{done.text.removesuffix(chr(10))}\n{note}" if done.text else note
        return Result(text, is_error=True, exit_code=done.exit_code)
    return Result(done.text or "[no output]", exit_code=done.exit_code)


TOOL = Tool(
    name="bash",
    description=(
        "Run a shell command in the sandbox, in /workspace. stdout and stderr come back together. Each call is a "
        "fresh shell: variables last only if they are set with `setenv NAME value`."
    ),
    arguments=BashArguments,
    run=run,
    risky=True,
)
