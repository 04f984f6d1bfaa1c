"""The pages people look at. They need no script: with one, they update by themselves."""

from web.pages.routes import blueprint

__all__ = ["blueprint"]
