"""Connections to PostgreSQL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.engine import make_url

from revln.db.engine import Database
from tests.conftest import fresh_database


def test_a_silent_server_is_noticed_and_the_url_may_say_how_soon(request: pytest.FixtureRequest) -> None:
    with fresh_database("postgresql", Path(), request) as url:
        assert parameters(url) >= {"keepalives_idle": "10", "tcp_user_timeout": "30000"}.items()
        other = make_url(url).update_query_dict({"keepalives_idle": "60"}).render_as_string(False)
        assert parameters(other) >= {"keepalives_idle": "60", "tcp_user_timeout": "30000"}.items()


def parameters(url: str) -> Any:
    db = Database(url)
    try:
        with db.read() as connection:
            return connection.connection.driver_connection.info.get_parameters().items()  # type: ignore[union-attr]
    finally:
        db.close()
