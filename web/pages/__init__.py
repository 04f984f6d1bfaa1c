"""The pages. They work without JavaScript; with it, they update by themselves."""

from web.pages.routes import blueprint

__all__ = ["blueprint"]
