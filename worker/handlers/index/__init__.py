"""Run an index job: one file for each operation, named in `operations`."""
