"""Whose a Redis is: under one prefix, one installation's.

Two installations that share a prefix would take each other's messages, and one's worker would answer the readiness
check of the other. So each holds a key with its id, and what finds another's id there stops with a sentence.
"""

from __future__ import annotations

from typing import Any

import redis

from revln.db.engine import Database
from revln.db.installation import installation_id
from revln.errors import SettingsError
from revln.redis_clients import RedisNames
from revln.settings import Settings

__all__ = ["Installation"]

_HELD_S = 60  # without being renewed; workers renew it every five seconds
# As one step, so that it costs no round trip beside what it is asked with.
_CLAIM = """
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return holder end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
return ARGV[1]
"""


class Installation:
    """The one whose database ``db`` is; one for each process, made before or after a fork."""

    def __init__(self, settings: Settings, db: Database) -> None:
        self._prefix, self._db = settings.redis_prefix, db
        self._key = RedisNames(settings).installation
        self._id = ""

    @property
    def id(self) -> str:
        """Read from the database once. Raises Unavailable."""
        if not self._id:
            self._id = installation_id(self._db)
        return self._id

    def ask(self, client: redis.Redis) -> Any:
        """Hold Redis for this installation if no other does; `check` takes what Redis, or a pipeline later, answers."""
        return client.eval(_CLAIM, 1, self._key, self.id, str(_HELD_S))

    def check(self, holder: Any) -> None:
        """Raise SettingsError if ``holder`` is another installation."""
        if holder != self.id:
            raise SettingsError(
                f"Another installation of revln, with another database, uses this Redis under the same prefix "
                f"(REVLN_REDIS_PREFIX is {self._prefix!r}): give each its own REVLN_REDIS_PREFIX, or, if the other one "
                f"has been stopped, try again {_HELD_S} s after its end."
            )

    def claim(self, client: redis.Redis) -> None:
        """Hold Redis, or hold it for longer.

        Raises:
            redis.RedisError: Redis does not answer.
            SettingsError: another installation holds it.
            Unavailable: this one's id is not known, because the database does not answer.
        """
        self.check(self.ask(client))
