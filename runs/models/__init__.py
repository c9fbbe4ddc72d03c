"""What is running: runs, their attempts, transcripts, tool calls and events, and what they hold and wait for."""

from runs.models.gateway import Lock, LockWait, TriggerWait, TriggerWaitState
from runs.models.images import BuildState, ImageBuild
from runs.models.memory import Memory
from runs.models.outgoing import Outgoing, OutgoingFormat, OutgoingMessage, OutgoingState
from runs.models.people import Approval, ApprovalState, InputMode, InputState, RunInput
from runs.models.run import KEEP_THE_SLOT, TERMINAL, Host, Run, Status, TriggerKind, WaitReason
from runs.models.watch import Alert, Canary, DeadLetter
from runs.models.work import Attempt, CallState, Event, Message, SandboxState, ToolCall

__all__ = [
    "KEEP_THE_SLOT",
    "TERMINAL",
    "Alert",
    "Approval",
    "ApprovalState",
    "Attempt",
    "BuildState",
    "CallState",
    "Canary",
    "DeadLetter",
    "Event",
    "Host",
    "ImageBuild",
    "InputMode",
    "InputState",
    "Lock",
    "LockWait",
    "Memory",
    "Message",
    "Outgoing",
    "OutgoingFormat",
    "OutgoingMessage",
    "OutgoingState",
    "Run",
    "RunInput",
    "SandboxState",
    "Status",
    "ToolCall",
    "TriggerKind",
    "TriggerWait",
    "TriggerWaitState",
    "WaitReason",
]
