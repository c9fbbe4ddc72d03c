"""What a request costs, in US dollars, by the kept price list of genai-prices. Heavy: only processes that ask pay."""

from __future__ import annotations

from decimal import Decimal

from agents.spec import ModelSpec
from runs.llm import scripted
from runs.transcript import Usage

DIGITS = Decimal("0.000001")


def cost(model: ModelSpec, usage: Usage) -> Decimal | None:
    """Of one request; None where nobody knows the model's price."""
    if model.provider == scripted.PROVIDER:
        return Decimal(0)
    import genai_prices  # noqa: PLC0415 - it reads its whole list at the first use

    spent = genai_prices.Usage(
        input_tokens=usage["input"],
        output_tokens=usage["output"],
        cache_read_tokens=usage["cache_read"],
        cache_write_tokens=usage["cache_write"],
    )
    try:
        price = genai_prices.calc_price(spent, model_ref=model.model, provider_id=model.provider)
    except LookupError:
        return None
    return price.total_price.quantize(DIGITS)


def of_input(model: ModelSpec, tokens: int) -> Decimal | None:
    """Of a request that only sent: what one that breaks off has cost at most before it was answered."""
    return cost(model, {"input": tokens, "output": 0, "cache_read": 0, "cache_write": 0})
