from django.contrib import admin
from django.urls import include, path
from django.views.generic import RedirectView
from drf_spectacular.views import SpectacularAPIView

from agentfleet.views import healthz, login_by_link, new_link, readyz
from webhooks.urls import api_urls, receipt_urls

admin.autodiscover()  # not at the start of every process: only web shows them

handler404 = "runs.api.errors.not_found"

urlpatterns = [
    path("", RedirectView.as_view(pattern_name="admin:index")),
    path("healthz", healthz),
    path("readyz", readyz),
    path("api/v1/", include("runs.api.urls")),
    path("api/v1/", include(api_urls)),
    path("api/v1/login-links", new_link),
    path("api/v1/schema/", SpectacularAPIView.as_view()),
    path("api/webhooks/", include(receipt_urls)),  # where other programs look for it
    path("login/<int:user_id>/<str:token>/", login_by_link),
    path("webhooks/", include("webhooks.urls")),
    path("admin/", admin.site.urls),
]
