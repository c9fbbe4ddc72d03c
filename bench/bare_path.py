"""Where the floor of deliveries answers; for those who ask, and need nothing of Django."""

PATH = "/webhooks/bare/insert"
