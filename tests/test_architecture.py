"""What the design asks of the code as a whole, beyond what linters see."""

from __future__ import annotations

import ast
import re
from typing import Any

import pytest
from django.apps import apps
from django.conf import settings
from django.db import connection, models
from django.test import Client
from django.test.utils import CaptureQueriesContext
from drf_spectacular.generators import SchemaGenerator

from agents.models import ApiToken
from tests.conftest import DrivenWorker
from tests.making import bash, make_agent, make_workspace, submit

OURS = ("agents", "runs", "webhooks")
MODELS = [model for app in OURS for model in apps.get_app_config(app).get_models()]

# --- models -------------------------------------------------------------------------------------------------------


def lists_of_indexes(source: str) -> list[list[ast.expr]]:
    """The elements of every `indexes: ClassVar = […]`."""
    assigned = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.AnnAssign)]
    return [
        node.value.elts
        for node in assigned
        if isinstance(node.target, ast.Name) and node.target.id == "indexes" and isinstance(node.value, ast.List)
    ]


def sources_of_models(app: str) -> list[str]:
    """A module, or a package of them."""
    folder = settings.BASE_DIR / app
    return [file.read_text() for file in [*folder.glob("models.py"), *sorted(folder.glob("models/*.py"))]]


@pytest.mark.parametrize("app", OURS)
def test_every_index_is_captioned_with_its_query(app: str) -> None:
    """A comment above it, or above the first of several that serve the same one."""
    made = [index for model in MODELS if model._meta.app_label == app for index in model._meta.indexes]
    counted = 0
    for source in sources_of_models(app):
        lines = source.splitlines()
        for indexes in lists_of_indexes(source):
            counted += len(indexes)
            captioned_until = 0
            for index in indexes:
                above = index.lineno - 1
                assert lines[above - 1].strip().startswith("#") or above == captioned_until, lines[above]
                captioned_until = index.end_lineno or 0
    assert counted == len(made)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_constraint_is_named_as_a_sentence(model: type[models.Model]) -> None:
    assert not model._meta.unique_together  # which has no name
    for constraint in model._meta.constraints:
        assert re.fullmatch(r"[a-z]+(_[a-z]+){2,}", constraint.name), constraint.name


# --- lists --------------------------------------------------------------------------------------------------------


def listings() -> list[str]:
    """Every path of the REST API that answers GET and names no one thing."""
    generator: Any = SchemaGenerator
    schema = generator().get_schema(request=None, public=True)
    return [path for path, methods in schema["paths"].items() if "get" in methods and "{" not in path]


@pytest.mark.django_db(transaction=True)
def test_no_listing_of_the_api_reads_what_runs_printed(worker: DrivenWorker) -> None:
    _, token = ApiToken.issue(make_workspace(), "test", is_operators=True)
    agent = make_agent(turns=[{"tools": [bash("echo printed")]}, {"text": "done"}])
    for _ in range(3):
        worker.drive(submit(agent))
    paths = listings()
    assert "/api/v1/tasks" in {path.rstrip("/") for path in paths}
    for path in paths:
        with CaptureQueriesContext(connection) as captured:
            answer = Client().get(path, headers={"authorization": f"Bearer {token}"})
        assert answer.status_code == 200, path
        for query in captured.captured_queries:
            assert not re.search(r'"runs_(event|message|toolcall)"', query["sql"]), (path, query["sql"])
