# syntax=docker/dockerfile:1
# The router, and the HTTP gateway: no torch and no vllm, hence small.
#   docker build -f deploy/containers/router.Dockerfile -t slos-serve-router .
#   docker build -f deploy/containers/router.Dockerfile -t slos-serve-gateway --target gateway --build-arg LOCK=gateway .
FROM python:3.11-slim-bookworm AS build
ARG LOCK=router
WORKDIR /opt/slos-serve
COPY . .
# Machine code of the planner is used while its sources are as old as they were; layers keep whole seconds only.
RUN find services/slo/planner/kernels -name '*.py' -exec touch -d 2026-01-01T00:00:00Z {} + \
    && deploy/install.sh /opt/venv requirements/$LOCK.lock \
    && /opt/venv/bin/python -m compileall -qq .

FROM python:3.11-slim-bookworm AS base
RUN useradd --create-home --uid 10001 slos
COPY --from=build /opt/venv /opt/venv
COPY --from=build /opt/slos-serve /opt/slos-serve
# On another kind of processor than the image was made on, the router compiles the planner again, into the same place.
RUN chown -R slos /opt/slos-serve/services/slo/planner/kernels/__pycache__
COPY deploy/containers/slos-serve.toml /etc/slos-serve/slos-serve.toml
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER slos
WORKDIR /home/slos

FROM base AS gateway
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
# exec form: SIGTERM reaches the process itself, which drains.
CMD ["slos-serve", "gateway", "--config", "/etc/slos-serve/slos-serve.toml"]

FROM base AS router
EXPOSE 50051
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 CMD ["slos-serve", "health", "127.0.0.1:50051"]
CMD ["slos-serve", "router", "--config", "/etc/slos-serve/slos-serve.toml"]
