from django.apps import AppConfig


class WebhooksConfig(AppConfig):
    name = "webhooks"

    def ready(self) -> None:
        from runs import lineage, payloads, sweep, watch  # noqa: PLC0415 - models load after apps do
        from webhooks import held, refusals, retention  # noqa: PLC0415
        from webhooks.deliveries import body_of, hops_of  # noqa: PLC0415
        from webhooks.polls import commands, looks  # noqa: PLC0415

        payloads.register("dlv", body_of)
        lineage.register("dlv", hops_of)
        sweep.also(held.sweep)
        sweep.also(looks.sweep)
        sweep.spare(commands.is_looked_from)
        sweep.also(retention.part)
        watch.also(refusals.write)
