"""The web process."""

from __future__ import annotations

import os
import sys

import uvicorn

# Seconds a thread may compute before another gets its turn, a fifth of the usual: the loop only passes things on,
# and every answer waits for it.
SWITCH_EVERY = 0.001


def serve() -> None:
    """Serve until told to stop. Streams are cut at once: their readers come back and miss nothing."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "agentfleet.settings")
    sys.setswitchinterval(SWITCH_EVERY)
    import django  # noqa: PLC0415 - the variable above decides with which settings

    django.setup()
    from django.conf import settings  # noqa: PLC0415

    import agentfleet.celery  # noqa: F401, PLC0415 - the watcher's messages need the application
    from runs import watch  # noqa: PLC0415

    watch.start()
    uvicorn.run(
        "agentfleet.asgi:application",
        host=settings.HOST,
        port=settings.PORT,
        lifespan="off",
        access_log=False,
        log_config=None,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=3,
    )
