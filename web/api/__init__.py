"""``/api``: the stored history of jobs, for audits."""

from web.api import exports as _exports  # noqa: F401 (adds its endpoint to the blueprint)
from web.api import removal as _removal  # noqa: F401 (adds its endpoints to the blueprint)
from web.api import reviews as _reviews  # noqa: F401 (adds its endpoints to the blueprint)
from web.api import stats as _stats  # noqa: F401 (adds its endpoint to the blueprint)
from web.api import system as _system  # noqa: F401 (adds its endpoint to the blueprint)
from web.api.routes import blueprint

__all__ = ["blueprint"]
