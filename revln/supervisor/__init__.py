"""A supervisor for one machine: readiness, restarts with back-off, ordered stop, and no process left behind."""

from revln.supervisor.core import Supervisor
from revln.supervisor.log import LogStream
from revln.supervisor.process import Part

__all__ = ["LogStream", "Part", "Supervisor"]
