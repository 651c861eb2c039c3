# syntax=docker/dockerfile:1
# The router, and the HTTP gateway: no torch and no vllm, hence small.
#   docker build -f deploy/containers/router.Dockerfile -t slos-serve-router .
#   docker build -f deploy/containers/router.Dockerfile -t slos-serve-gateway --target gateway --build-arg LOCK=gateway .
FROM python:3.11-slim-bookworm AS build
ARG LOCK=router
WORKDIR /opt/slos-serve
COPY . .
RUN deploy/install.sh /opt/venv requirements/$LOCK.lock \
    && /opt/venv/bin/python -m compileall -qq .

FROM python:3.11-slim-bookworm AS base
RUN useradd --create-home --uid 10001 slos
COPY --from=build /opt/venv /opt/venv
COPY --from=build /opt/slos-serve /opt/slos-serve
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
