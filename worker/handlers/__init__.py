"""Run a chunk: one file or package for each kind of job, named in `registry`."""
