"""All settings, each with a default that is safe on one box. Environment variables change them; nothing else does."""

from __future__ import annotations

import os
import secrets
import socket
from pathlib import Path
from typing import Any

import dj_database_url
from django.templatetags.static import static
from django.urls import reverse_lazy

from agentfleet import home


def env(name: str, default: str = "") -> str:
    return os.environ.get(name) or default


def env_int(name: str, default: int) -> int:
    return int(env(name, str(default)))


def env_list(name: str) -> list[str]:
    return [item.strip() for item in env(name).split(",") if item.strip()]


BASE_DIR = Path(__file__).resolve().parent.parent
HOME = home.path()

# --- Django -----------------------------------------------------------------------------------------------------

DEBUG = False
_key_file = HOME / "secret_key"
# Tools that only read the code (checks, makemigrations) may run without a home; servers make it first.
SECRET_KEY = env("SECRET_KEY") or (_key_file.read_text().strip() if _key_file.exists() else secrets.token_urlsafe(48))

HOST = env("AGENTFLEET_HOST", "127.0.0.1")
PORT = env_int("AGENTFLEET_PORT", 8000)
ALLOWED_HOSTS = ["localhost", "127.0.0.1", "[::1]", *env_list("AGENTFLEET_ALLOWED_HOSTS")]
if HOST in {"0.0.0.0", "::"}:  # noqa: S104 - asked for with --host, and said aloud at the start
    ALLOWED_HOSTS += [socket.gethostname(), socket.getfqdn()]
elif HOST not in ALLOWED_HOSTS:
    ALLOWED_HOSTS.append(HOST)
CSRF_TRUSTED_ORIGINS = env_list("AGENTFLEET_TRUSTED_ORIGINS")
PUBLIC_URL = env("AGENTFLEET_URL", f"http://{HOST}:{PORT}")
_https = PUBLIC_URL.startswith("https://")
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = _https
SESSION_COOKIE_SAMESITE = CSRF_COOKIE_SAMESITE = "Lax"
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if _https else None
SECURE_CONTENT_TYPE_NOSNIFF = True
X_FRAME_OPTIONS = "DENY"

INSTALLED_APPS = [
    "unfold",
    "django.contrib.admin.apps.SimpleAdminConfig",  # `urls` looks for the admins: only web pays for them
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django_celery_beat",
    "rest_framework",
    "drf_spectacular",
    "channels",
    "agents",
    "runs",
    "webhooks",
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

ROOT_URLCONF = "agentfleet.urls"
ASGI_APPLICATION = "agentfleet.asgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]
LANGUAGE_CODE = "en"
TIME_ZONE = "UTC"
USE_I18N = False
USE_TZ = True
STATIC_URL = "/static/"
STATICFILES_DIRS = [BASE_DIR / "static"]
WHITENOISE_USE_FINDERS = True  # served from the packages: nothing to collect before a start
WHITENOISE_AUTOREFRESH = False
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
LOGIN_URL = "admin:login"
DATA_UPLOAD_MAX_MEMORY_SIZE = 32 * 1024 * 1024  # a project bundle; webhooks have their own, smaller cap

# --- Database: the truth ----------------------------------------------------------------------------------------

DATABASE_URL = env("DATABASE_URL")
DATABASE_POOL = env_int("AGENTFLEET_DATABASE_POOL", 16)
_database: dict[str, Any]
if DATABASE_URL:
    _database = {**dj_database_url.parse(DATABASE_URL)}
    _database["CONN_HEALTH_CHECKS"] = True  # the server may have been started again: 0.03 ms for each of our stretches
    _database["OPTIONS"] = {
        **_database.get("OPTIONS", {}),
        "pool": {"min_size": 1, "max_size": DATABASE_POOL, "timeout": 20},
    }
else:
    _database = {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": HOME / "agentfleet.sqlite3",
        "CONN_MAX_AGE": None,
        "OPTIONS": {
            "transaction_mode": "IMMEDIATE",  # take the write lock at once: a later upgrade can deadlock
            "timeout": 20,
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA cache_size=-1000;",
        },
        "TEST": {"NAME": HOME / "test.sqlite3"},  # a file: tests with threads need one that threads share
    }
DATABASES = {"default": _database}

# --- Redis: doorbells and notifications -------------------------------------------------------------------------

REDIS_URL = env("REDIS_URL", f"unix://{HOME / 'redis.sock'}")
CHANNEL_LAYERS = {
    "default": {
        "BACKEND": "channels_redis.core.RedisChannelLayer",
        "CONFIG": {
            "hosts": [{"address": REDIS_URL, "socket_timeout": 10, "socket_connect_timeout": 1}],
            "prefix": "agentfleet",
            "capacity": 1000,
            "expiry": 10,
        },
    },
}

CELERY_BROKER_URL = REDIS_URL.replace("unix://", "redis+socket://")
CELERY_BROKER_TRANSPORT_OPTIONS = {
    "socket_timeout": 10,
    "socket_connect_timeout": 1,
    "socket_keepalive": not REDIS_URL.startswith("unix://"),
    "health_check_interval": 25,
    "global_keyprefix": "agentfleet.",
}
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BROKER_CONNECTION_MAX_RETRIES = None  # a worker outlives any outage of Redis
CELERY_TASK_IGNORE_RESULT = True
CELERY_TASK_ACKS_LATE = False  # a doorbell is done when it has been heard; the row is the retry
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
CELERY_WORKER_DISABLE_PREFETCH = True
CELERY_WORKER_POOL = "threads"
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_WORKER_ENABLE_REMOTE_CONTROL = False  # no gossip, no pidbox: fewer connections, nothing to spoof
CELERY_TIMEZONE = "UTC"
CELERY_BEAT_SCHEDULER = "django_celery_beat.schedulers:DatabaseScheduler"
DJANGO_CELERY_BEAT_TZ_AWARE = True

# --- REST -------------------------------------------------------------------------------------------------------

REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": ["runs.api.auth.BearerToken"],
    "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.IsAuthenticated"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["runs.api.parsing.Json"],
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
    "EXCEPTION_HANDLER": "runs.api.errors.handle",
    "UNAUTHENTICATED_USER": None,
}
SPECTACULAR_SETTINGS = {
    "TITLE": "agentfleet",
    "DESCRIPTION": "Run LLM agents in sandboxes; watch, answer and stop them.",
    "VERSION": "1",
    "SERVE_INCLUDE_SCHEMA": False,
    "SERVE_AUTHENTICATION": [],
    "SERVE_PERMISSIONS": ["rest_framework.permissions.AllowAny"],
}

# --- Workers and sandboxes --------------------------------------------------------------------------------------

WEB_THREADS = env_int("AGENTFLEET_WEB_THREADS", 16)
WORKER_THREADS = env_int("AGENTFLEET_WORKER_THREADS", 64)
SANDBOX_ENGINE = env("AGENTFLEET_SANDBOX", "runs.sandbox.docker.DockerEngine")
SANDBOX_IMAGE = env("AGENTFLEET_IMAGE", "agentfleet-sandbox:latest")
IMAGE_DAYS = env_int("AGENTFLEET_IMAGE_DAYS", 7)  # that an image made for an agent is kept, though nothing uses it
POLL_PATHS = env_list("AGENTFLEET_POLL_PATHS")  # folders of this host below which polls may look; empty: none
SANDBOX_RUNTIME = env("AGENTFLEET_RUNTIME")  # an engine's other runtime, such as runsc; empty: its default
# Where credentials are looked for, in this order: dotted paths of classes, see docs/credentials.md
CREDENTIAL_STORES = env_list("AGENTFLEET_CREDENTIAL_STORES") or [
    "agents.credentials.files.FileStore",
    "agents.credentials.environment.EnvironmentStore",
    "agents.credentials.rows.RowStore",
]
EXTRA_CA_FILE = env("AGENTFLEET_EXTRA_CA_FILE")  # certificates a company proxy adds, for TLS inside sandboxes
GATEWAY_PORT = env_int("AGENTFLEET_GATEWAY_PORT", 8643)  # at the sandbox network's own address of this host
PARKED_GRACE = env_int("AGENTFLEET_PARKED_GRACE", 600)  # seconds a waiting run keeps its container; its files stay
MAX_HOPS = env_int("AGENTFLEET_MAX_HOPS", 16)  # runs that may be before another in its chain of causes
MAX_RUNS_PER_ROOT = env_int("AGENTFLEET_MAX_RUNS_PER_ROOT", 200)  # that one run may set off in 24 hours, in all
DELIVERY_RETENTION_DAYS = env_int("AGENTFLEET_DELIVERY_RETENTION_DAYS", 14)  # webhooks older than that go; 0: none
FLEET = env("AGENTFLEET_FLEET", "default")  # labels what this installation starts on a shared engine

# --- Watchers: what is missing becomes an alert -------------------------------------------------------------------

SCHEDULE_GRACE = env_int("AGENTFLEET_SCHEDULE_GRACE", 60)  # seconds after its time that a tick may be fired
CANARY_EVERY = env_int("AGENTFLEET_CANARY_EVERY", 30)  # seconds between two messages through each queue
CANARY_WITHIN = env_int("AGENTFLEET_CANARY_WITHIN", 90)  # seconds that one may go unheard
WATCHDOG_SECONDS = env_int("AGENTFLEET_WATCHDOG_SECONDS", 600)  # that a run may show nothing, or a line not move
NOTIFY_URL = env("AGENTFLEET_NOTIFY_URL")  # alerts are posted there; empty: they are in the log and on the front page
HEARTBEAT_URL = env("AGENTFLEET_HEARTBEAT_URL")  # asked every minute while all is well

# --- Logs -------------------------------------------------------------------------------------------------------

LOG_LEVEL = env("AGENTFLEET_LOG_LEVEL", "INFO")
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)-7s %(name)s: %(message)s"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["stderr"], "level": LOG_LEVEL},
    "loggers": {
        "httpx": {"level": "WARNING"},
        "httpx2": {"level": "WARNING"},
        "celery.worker.strategy": {"level": "WARNING"},  # one line a doorbell says nothing
        "celery.app.trace": {"level": "WARNING"},
    },
}

# --- Admin ------------------------------------------------------------------------------------------------------


def _menu(title: str, icon: str, model: str) -> dict[str, Any]:
    """A list in the side bar, for whoever may see its rows."""
    app, _, name = model.rpartition("_")
    return {
        "title": title,
        "icon": icon,
        "link": reverse_lazy(f"admin:{model}_changelist"),
        "permission": lambda request: request.user.has_perm(f"{app}.view_{name}"),
    }


UNFOLD = {
    "SITE_TITLE": "agentfleet",
    "SITE_HEADER": "agentfleet",
    "SITE_ICON": lambda request: static("agentfleet/icon.svg"),
    "SITE_FAVICONS": [
        {"rel": "icon", "type": "image/svg+xml", "href": lambda request: static("agentfleet/icon.svg")},
    ],
    "SITE_URL": None,
    "DASHBOARD_CALLBACK": "runs.dashboard.front_page",
    "STYLES": [lambda request: static("agentfleet/agentfleet.css")],
    "SIDEBAR": {
        "navigation": [
            {
                "items": [
                    {"title": "Fleet now", "icon": "dashboard", "link": reverse_lazy("admin:index")},
                    _menu("Runs", "play_circle", "runs_run"),
                    _menu("Agents", "smart_toy", "agents_agent"),
                    _menu("Alerts", "notifications", "runs_alert"),
                    _menu("Locks", "lock", "runs_lock"),
                    _menu("Deliveries", "inbox", "webhooks_delivery"),
                    _menu("Dead letters", "unsubscribe", "runs_deadletter"),
                    _menu("Sources", "webhook", "webhooks_source"),
                    _menu("Outgoing", "outbox", "runs_outgoing"),
                    _menu("Memory", "psychology", "runs_memory"),
                    _menu("Schedules", "schedule", "django_celery_beat_periodictask"),
                    _menu("Credentials", "password", "agents_credential"),
                    _menu("Tokens", "key", "agents_apitoken"),
                    _menu("Users", "person", "auth_user"),
                ],
            },
        ],
    },
}
