from django.urls import path

from runs.api import agents, approvals, dead_letters, fleet, inputs, outgoing, starting, tasks
from runs.api.context import TaskContext
from runs.api.stream import task_stream
from runs.api.wait import TaskWait

urlpatterns = [
    path("agents", agents.Agents.as_view()),
    path("agents/<str:name>", agents.AgentDetail.as_view()),
    path("agents/<str:name>/task", starting.AgentTasks.as_view()),
    path("agents/<str:name>/run", starting.AgentRuns.as_view()),
    path("agents/<str:name>/pause", agents.AgentPause.as_view()),
    path("agents/<str:name>/resume", agents.AgentResume.as_view()),
    path("agents/<str:name>/reset", agents.AgentReset.as_view()),
    path("pause", fleet.FleetPause.as_view()),
    path("resume", fleet.FleetResume.as_view()),
    path("dead-letters", dead_letters.DeadLetters.as_view()),
    path("dead-letters/<str:letter_id>", dead_letters.DeadLetterDetail.as_view()),
    path("dead-letters/<str:letter_id>/replay", dead_letters.DeadLetterReplay.as_view()),
    path("outgoing", outgoing.Receivers.as_view()),
    path("outgoing/messages", outgoing.Messages.as_view()),
    path("outgoing/messages/<str:message_id>/replay", outgoing.MessageReplay.as_view()),
    path("tasks", tasks.Tasks.as_view()),
    path("tasks/<str:run_id>", tasks.TaskDetail.as_view()),
    path("tasks/<str:run_id>/events", tasks.TaskEvents.as_view()),
    path("tasks/<str:run_id>/stream", task_stream),
    path("tasks/<str:run_id>/wait", TaskWait.as_view()),
    path("tasks/<str:run_id>/respond", tasks.TaskRespond.as_view()),
    path("tasks/<str:run_id>/approvals", approvals.TaskApprovals.as_view()),
    path("tasks/<str:run_id>/approvals/<str:call_id>", approvals.TaskApproval.as_view()),
    path("tasks/<str:run_id>/input", inputs.TaskInput.as_view()),
    path("tasks/<str:run_id>/inputs", inputs.TaskInputs.as_view()),
    path("tasks/<str:run_id>/cancel", tasks.TaskCancel.as_view()),
    path("tasks/<str:run_id>/context", TaskContext.as_view()),
]
