"""Hold FAISS indexes in memory: load, follow the log, search, build snapshots and collect their files."""
