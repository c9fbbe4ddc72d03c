from django.apps import AppConfig


class WebhooksConfig(AppConfig):
    name = "webhooks"

    def ready(self) -> None:
        from runs import payloads  # noqa: PLC0415 - models load after apps do
        from webhooks.deliveries import body_of  # noqa: PLC0415

        payloads.register("dlv", body_of)
