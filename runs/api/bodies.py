"""What requests about tasks may say, and the fields that other bodies are made of."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from rest_framework import serializers

LARGEST_INPUT = 1024 * 1024  # characters


class Strict(serializers.Serializer[Any]):
    """A request body whose unknown fields are faults, not silence."""

    def to_internal_value(self, data: Any) -> Any:
        if isinstance(data, dict) and (unknown := sorted(set(data) - set(self.fields))):
            known = ", ".join(self.fields)
            raise serializers.ValidationError(dict.fromkeys(unknown, f"unknown field; known are {known}"))
        return super().to_internal_value(data)


class Text(serializers.CharField):
    """Text and nothing else: the framework's own field makes text of numbers, and "inf" of 7e999."""

    def to_internal_value(self, data: Any) -> str:
        if not isinstance(data, str):
            self.fail("invalid")
        return super().to_internal_value(data)


class NewTask(Strict):
    input = Text(max_length=LARGEST_INPUT)
    priority = serializers.ChoiceField(["high", "normal", "low"], required=False)
    tags = serializers.ListField(child=Text(max_length=100), max_length=50, required=False)
    maxIterations = serializers.IntegerField(min_value=0, max_value=10_000, required=False)  # noqa: N815
    maxDurationSeconds = serializers.IntegerField(min_value=0, max_value=31_536_000, required=False)  # noqa: N815
    tokenBudget = serializers.IntegerField(min_value=0, max_value=2_000_000_000, required=False)  # noqa: N815
    maxIdleSeconds = serializers.IntegerField(min_value=0, max_value=31_536_000, required=False)  # noqa: N815
    costBudgetUsd = serializers.DecimalField(  # noqa: N815
        max_digits=12, decimal_places=6, min_value=Decimal(0), max_value=Decimal(100_000), required=False
    )
    maxOutputBytes = serializers.IntegerField(min_value=0, max_value=2**53, required=False)  # noqa: N815
    sessionKey = Text(max_length=200, required=False)  # noqa: N815
    claimKey = Text(max_length=200, required=False)  # noqa: N815


class NewRun(NewTask):
    input = Text(max_length=LARGEST_INPUT, required=False, allow_blank=True, default="")


class Answer(Strict):
    message = Text(max_length=LARGEST_INPUT)
