# One image for every part: api, worker, flower, db upgrade. Build: docker build -t revln .
FROM python:3.11-slim AS build

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/revln
ENV PATH=/opt/revln/bin:$PATH

# The locked dependencies first: they change less often than the code, and are nearly all of the size.
# What tests need (requirements-dev.lock) is not among them.
COPY requirements.lock /src/requirements.lock
RUN pip install --require-hashes --requirement /src/requirements.lock

COPY pyproject.toml README.md LICENSE /src/
COPY revln /src/revln
COPY api /src/api
COPY worker /src/worker
COPY migrations /src/migrations
RUN pip install --no-deps --no-build-isolation /src


FROM python:3.11-slim

# The wheels carry their own OpenMP and PostgreSQL client libraries: nothing of the system's is needed.
RUN useradd --uid 10001 --create-home revln && install --directory --owner revln --group revln /data

COPY --from=build /opt/revln /opt/revln
ENV PATH=/opt/revln/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    REVLN_DATA_DIR=/data

USER revln
WORKDIR /data
VOLUME /data
EXPOSE 8000 5555

# Health checks stand in docker-compose.yml: each part has its own.
ENTRYPOINT ["revln"]
CMD ["--help"]
