"""The HTTP side: the API, the pages and the server. The only package that knows HTTP."""

from __future__ import annotations

from flask import Flask
from werkzeug.middleware.proxy_fix import ProxyFix

from jobs.settings import Settings
from web import (
    access,
    api,
    converters,
    errors,
    health,
    log,
    metrics,
    openapi,
    pages,
    rate_limits,
    request_id,
    security,
    tracing,
    v1,
)
from web.services import Services
from web.v1.feeds import Feeds
from web.v1.replies import Replies

#: The maximum number of bytes of a request's body; a larger one gets 413.
MAX_BODY = 1 << 20


def create_app(settings: Settings) -> Flask:
    """Make the application. It connects to the database and Redis at the first request."""
    app = Flask(__name__, static_folder=None)  # The pages have their own.
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY
    app.config["MAX_FORM_MEMORY_SIZE"] = MAX_BODY
    app.json.sort_keys = False  # type: ignore[attr-defined]  # of Flask's default provider
    app.url_map.strict_slashes = False
    converters.init_app(app)
    services = Services(settings)
    services.init_app(app)
    Feeds(services.database, services.progress).init_app(app)
    Replies(services.database).init_app(app)
    services.running.init_app(app)
    metrics.init_app(app, services)
    request_id.init_app(app)
    tracing.init_app(app, settings)
    security.init_app(app, settings)
    access.init_app(app, settings)
    rate_limits.init_app(app, settings)
    errors.init_app(app)
    # Of what a proxy says, the scheme alone, for the addresses that pages show. `Host` comes unchanged.
    app.wsgi_app = ProxyFix(app.wsgi_app, x_for=0, x_proto=1, x_host=0)  # type: ignore[method-assign]  # Flask's way
    app.register_blueprint(v1.blueprint, url_prefix="/v1")
    app.register_blueprint(api.blueprint, url_prefix="/api")
    app.register_blueprint(log.blueprint, url_prefix="/log")
    app.register_blueprint(pages.blueprint)
    app.register_blueprint(pages.login_blueprint)
    app.register_blueprint(health.blueprint)
    app.register_blueprint(metrics.blueprint)
    app.register_blueprint(openapi.blueprint)
    return app
