"""The pages. They work without JavaScript; with it, they update by themselves."""

from web.pages import (  # noqa: F401 (they add their endpoints)
    actions,
    review_page,
    selection,
    system_page,
)
from web.pages.login import blueprint as login_blueprint
from web.pages.routes import blueprint

__all__ = ["blueprint", "login_blueprint"]
