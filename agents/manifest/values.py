"""What several keys of a settings file have in common."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from agents import schedule

Count = Annotated[int, Field(ge=0, le=2**31 - 1)]
Seconds = Annotated[int, Field(ge=1, le=2**31 - 1)]
Name = Annotated[str, Field(min_length=1, max_length=100)]


class Table(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


def length_of_time(value: Any) -> Any:
    """Seconds, or a text such as 15m."""
    if not isinstance(value, str):
        return value
    try:
        return schedule.seconds(value)
    except ValueError as error:
        raise PydanticCustomError("ours", str(error)) from error


Length = Annotated[Count, BeforeValidator(length_of_time)]
