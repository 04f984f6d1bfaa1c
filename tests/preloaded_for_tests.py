"""What processes that run tests need beyond `tests.preloaded`, and is nobody's own: see the root's conftest."""

from __future__ import annotations

import alembic.command
import hypothesis
import matplotlib.figure
import openai.types
import openapi_pydantic
import openresponses_types
import playwright.sync_api
import psycopg
import pyarrow.parquet
import schemathesis
import scipy.stats
import triton
