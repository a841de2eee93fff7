"""A chunk that was running when a worker died runs alone in its process until it has ended.

Whoever dies charges every chunk that it ran, the innocent too. Run alone, a suspect's next death is its own, so an
innocent chunk is not buried with `REVLN_MAX_CRASHES` kills of busy workers.
"""

from __future__ import annotations

from revln.locks import SharedLock

__all__ = ["Isolation"]


class Isolation(SharedLock):
    """Chunks share the process; a suspect has it alone."""
