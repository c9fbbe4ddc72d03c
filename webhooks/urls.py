from django.urls import path

from webhooks import api, credentials_api, views

urlpatterns = [
    path("<str:provider>", views.receive),
    path("<str:provider>/<str:source>", views.receive),
]
api_urls = [
    path("projects/<str:name>", api.Projects.as_view()),
    path("credentials", credentials_api.Credentials.as_view()),
    path("credentials/<str:reference>", credentials_api.CredentialDetail.as_view()),
]
