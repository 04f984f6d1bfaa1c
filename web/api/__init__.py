"""``/api``: the stored history of jobs, for audits."""

from web.api.routes import blueprint

__all__ = ["blueprint"]
