from django.urls import path

from webhooks import api, views

urlpatterns = [
    path("<str:provider>", views.receive),
    path("<str:provider>/<str:source>", views.receive),
]
api_urls = [path("projects/<str:name>", api.Projects.as_view())]
