from django.urls import path

from webhooks import api, credentials_api, deliveries_api, simulation_api, views

urlpatterns = [
    path("<str:provider>", views.receive),
    path("<str:provider>/<str:source>", views.receive),
]
api_urls = [
    path("projects/<str:name>", api.Projects.as_view()),
    path("credentials", credentials_api.Credentials.as_view()),
    path("credentials/<str:reference>", credentials_api.CredentialDetail.as_view()),
    path("deliveries", deliveries_api.Deliveries.as_view()),
    path("deliveries/replay", deliveries_api.DeliveriesReplay.as_view()),
    path("deliveries/<str:delivery_id>", deliveries_api.DeliveryDetail.as_view()),
    path("deliveries/<str:delivery_id>/replay", deliveries_api.DeliveryReplay.as_view()),
    path("webhooks/simulate", simulation_api.Simulate.as_view()),
]
receipt_urls = [path("<str:delivery_id>/replay", deliveries_api.ReceiptReplay.as_view())]
