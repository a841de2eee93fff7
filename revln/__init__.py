"""revln: asynchronous jobs for pictures and language."""

__version__ = "0.1.0"
