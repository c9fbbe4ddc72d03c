from django.contrib import admin
from django.http import HttpRequest, JsonResponse
from django.urls import include, path
from django.views.generic import RedirectView
from drf_spectacular.views import SpectacularAPIView

from agentfleet.login import login_by_link, new_link
from webhooks.urls import api_urls


def healthz(request: HttpRequest) -> JsonResponse:
    """This process answers. Whether the fleet works is another question."""
    return JsonResponse({"status": "ok"})


handler404 = "runs.api.errors.not_found"

urlpatterns = [
    path("", RedirectView.as_view(pattern_name="admin:index")),
    path("healthz", healthz),
    path("api/v1/", include("runs.api.urls")),
    path("api/v1/", include(api_urls)),
    path("api/v1/login-links", new_link),
    path("api/v1/schema/", SpectacularAPIView.as_view()),
    path("login/<int:user_id>/<str:token>/", login_by_link, name="login-by-link"),
    path("webhooks/", include("webhooks.urls")),
    path("admin/", admin.site.urls),
]
