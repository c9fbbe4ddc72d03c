"""Beat's rows in the admin. They only mirror the agents' schedules, so nobody changes them."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django_celery_beat.models import (
    ClockedSchedule,
    CrontabSchedule,
    IntervalSchedule,
    PeriodicTask,
    SolarSchedule,
)
from unfold.admin import ModelAdmin
from unfold.decorators import display

from agents.pages import moment
from agents.tables import ReadOnly

for model in (ClockedSchedule, CrontabSchedule, IntervalSchedule, PeriodicTask, SolarSchedule):
    admin.site.unregister(model)


@admin.register(PeriodicTask)
class PeriodicTaskAdmin(ReadOnly, ModelAdmin):
    list_display = ("name", "enabled", "crontab", "description", "last_run")
    list_select_related = ("crontab",)
    search_fields = ("name",)
    fields = ("name", "enabled", "description", "crontab", "task", "args", "queue", "expire_seconds", "last_run")
    readonly_fields = ("last_run",)

    @display(description="Last rung", empty_value="never")
    def last_run(self, task: Any) -> str | None:
        return moment(task.last_run_at) or None
