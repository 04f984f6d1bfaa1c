"""The description of the API: ``/openapi.json``, made from the code, and ``/docs``, which shows it."""

from web.openapi.routes import blueprint

__all__ = ["blueprint"]
