"""The pages. They work without JavaScript; with it, they update by themselves."""

from web.pages import actions, review_page, system_page  # noqa: F401 (they add their endpoints)
from web.pages.login import blueprint as login_blueprint
from web.pages.routes import blueprint

__all__ = ["blueprint", "login_blueprint"]
