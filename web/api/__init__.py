"""Auditing: the whole history of a job."""

from web.api.routes import blueprint

__all__ = ["blueprint"]
