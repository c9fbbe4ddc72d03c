"""Where webhooks come from, as a project folder says it: `[webhooks.<name>]`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AliasChoices, BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from agents import rates
from agents.manifest.values import Length, Name, Table
from agents.spec import SignatureScheme, SourceSpec

Part = Annotated[str, Field(max_length=200)]

SECRETS = {
    "github": "github_webhook_secret",
    "sentry": "sentry_client_secret",
    "linear": "linear_webhook_secret",
    "mintlify": "mintlify_webhook_secret",
    "discord": "discord_bot",
    "slack": "slack_signing_secret",
    "twitter": "x_twitter_api",
    "gitlab": "gitlab_webhook_secret",
    "standardwebhooks": "standard_webhook_secret",
    "hmac": "hmac_webhook_secret",
    "generic": "generic_webhook_token",
}

Sender = Literal[
    "github",
    "gitlab",
    "sentry",
    "linear",
    "mintlify",
    "discord",
    "slack",
    "twitter",
    "standardwebhooks",
    "hmac",
    "generic",
    "test",
]


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _a_rate(value: str) -> str:
    """Empty where there is none."""
    try:
        rates.rate(value)
    except rates.BadRate as error:
        raise PydanticCustomError("ours", str(error)) from error
    return "" if value == rates.OFF else value


RateText = Annotated[str, Field(max_length=40), AfterValidator(_a_rate)]


class SchemeTable(Table):
    """`[webhooks.<name>.scheme]`: see SignatureScheme."""

    header: Name
    algorithm: Literal["sha1", "sha256", "sha512"] = SignatureScheme.algorithm
    encoding: Literal["hex", "base64"] = SignatureScheme.encoding
    prefix: Part = SignatureScheme.prefix
    separator: Part = SignatureScheme.separator
    signature_key: Part = SignatureScheme.signature_key
    timestamp_key: Part = SignatureScheme.timestamp_key
    timestamp_header: Part = SignatureScheme.timestamp_header
    signed: Part = SignatureScheme.signed
    tolerance_seconds: Length = Field(
        SignatureScheme.tolerance_seconds, validation_alias=AliasChoices("tolerance", "tolerance_seconds")
    )
    id_header: Part = SignatureScheme.id_header
    event_header: Part = SignatureScheme.event_header
    event: Name = SignatureScheme.event

    @model_validator(mode="after")
    def _can_be_checked(self) -> SchemeTable:
        """What would refuse every request, or check less than it seems to."""
        if fault := next(self._faults(), None):
            raise PydanticCustomError("ours", f"scheme.{fault}")
        return self

    def _faults(self) -> Iterator[str]:
        if "{body}" not in self.signed:
            yield "signed must hold {body}: otherwise nothing proves what was sent"
        if "{timestamp}" in self.signed and not (self.timestamp_key or self.timestamp_header):
            yield "signed holds {timestamp}: say where it is, timestamp_header or timestamp_key"
        if "{id}" in self.signed and not self.id_header:
            yield "signed holds {id}: say where it is, id_header"
        if bool(self.separator) is not bool(self.signature_key):
            yield "separator and signature_key go together: they are for a header of pairs, as in t=1,v1=2"
        if self.timestamp_key and not self.separator:
            yield "timestamp_key needs separator and signature_key: it is for a header of pairs, as in t=1,v1=2"


class SourceTable(Table):
    """`[webhooks.<name>]` of a project."""

    type: Sender
    credential: Name = "default"
    allow_unsigned: bool = Field(False, validation_alias=AliasChoices("allowUnsigned", "allow_unsigned"))
    own: Annotated[list[Name], BeforeValidator(_listed)] = []
    rate: RateText = SourceSpec.rate
    sender_rate: RateText = SourceSpec.sender_rate
    identical: RateText = SourceSpec.identical
    duplicate_seconds: Length = Field(
        SourceSpec.duplicate_seconds, validation_alias=AliasChoices("duplicate_window", "duplicate_seconds")
    )
    scheme: SchemeTable | None = None

    @model_validator(mode="after")
    def _signs_in_its_way(self) -> SourceTable:
        if self.scheme and self.type != "hmac":
            raise PydanticCustomError("ours", "scheme is for type hmac: the others sign in ways that are known")
        if self.type == "hmac" and not (self.scheme or self.allow_unsigned):
            raise PydanticCustomError(
                "ours", 'type hmac needs a table scheme that says how it is signed, such as header = "X-Signature"'
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _credential_by_its_type(cls, value: Any) -> Any:
        """Later versions of the seed write `x_twitter_api = "MyBot"` for `credential = "MyBot"`."""
        key = SECRETS.get(str(value.get("type"))) if isinstance(value, dict) else None
        if key is None or key not in value or "credential" in value:
            return value
        return {"credential" if name == key else name: item for name, item in value.items()}
