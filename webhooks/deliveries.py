"""What was received, for those who come later."""

from __future__ import annotations

from urllib.parse import parse_qs

from webhooks.models import Delivery


def hops_of(delivery_id: str) -> int:
    """Runs before it in the chain of causes; 0 as well if it is gone."""
    return Delivery.objects.filter(pk=delivery_id).values_list("hops", flat=True).first() or 0


def body_of(delivery_id: str) -> bytes | None:
    """The payload behind a delivery, out of its form if it came in one; None if the delivery is gone."""
    delivery = Delivery.objects.filter(pk=delivery_id).only("body", "headers").first()
    if delivery is None:
        return None
    body = bytes(delivery.body)
    if delivery.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
        fields = parse_qs(body.decode("utf-8", "replace"))
        return fields.get("payload", [""])[0].encode()
    return body
