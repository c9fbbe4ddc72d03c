from django.urls import path

from runs.api import agents, tasks
from runs.api.stream import task_stream

urlpatterns = [
    path("agents", agents.Agents.as_view()),
    path("agents/<str:name>", agents.AgentDetail.as_view()),
    path("agents/<str:name>/task", tasks.AgentTasks.as_view()),
    path("agents/<str:name>/run", tasks.AgentRuns.as_view()),
    path("agents/<str:name>/pause", agents.AgentPause.as_view()),
    path("agents/<str:name>/resume", agents.AgentResume.as_view()),
    path("tasks", tasks.Tasks.as_view()),
    path("tasks/<str:run_id>", tasks.TaskDetail.as_view()),
    path("tasks/<str:run_id>/events", tasks.TaskEvents.as_view()),
    path("tasks/<str:run_id>/stream", task_stream),
    path("tasks/<str:run_id>/respond", tasks.TaskRespond.as_view()),
    path("tasks/<str:run_id>/cancel", tasks.TaskCancel.as_view()),
    path("tasks/<str:run_id>/context", tasks.TaskContext.as_view()),
]
