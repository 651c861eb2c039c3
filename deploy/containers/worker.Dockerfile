# syntax=docker/dockerfile:1
# Both workers, one target each; they differ in their command only.
#   docker build -f deploy/containers/worker.Dockerfile --target prefill-worker -t slos-serve-prefill-worker .
# For CUDA add --build-arg LOCK=worker-cuda, and give the containers a GPU and a model directory (see deploy/README.md).
FROM python:3.11-slim-bookworm AS build
ARG LOCK=worker-cpu
WORKDIR /opt/slos-serve
COPY . .
RUN deploy/install.sh /opt/venv "requirements/${LOCK}.lock" \
    && /opt/venv/bin/python -m compileall -qq .

FROM python:3.11-slim-bookworm AS worker
# libnuma and tcmalloc serve vLLM's CPU engine; a compiler is needed when `enforce_eager` is off.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ libnuma1 libtcmalloc-minimal4 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 slos \
    && install -d -o slos -g slos /models
COPY --from=build /opt/venv /opt/venv
COPY --from=build /opt/slos-serve /opt/slos-serve
COPY deploy/containers/slos-serve.toml /etc/slos-serve/slos-serve.toml
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER slos
WORKDIR /home/slos
VOLUME /models
EXPOSE 50061
ENTRYPOINT ["/opt/slos-serve/deploy/containers/worker-entrypoint.sh"]
# Loading a model takes minutes; failed checks before the start period ends do not count.
HEALTHCHECK --interval=10s --timeout=5s --start-period=300s --retries=3 CMD ["slos-serve", "health", "127.0.0.1:50061"]

FROM worker AS prefill-worker
# The port is fixed for the health check; every container has an address of its own.
ENV SLOS_SERVE_PREFILL_WORKER__PORT=50061
CMD ["slos-serve", "prefill-worker", "--config", "/etc/slos-serve/slos-serve.toml"]

FROM worker AS decode-worker
ENV SLOS_SERVE_DECODE_WORKER__PORT=50061
CMD ["slos-serve", "decode-worker", "--config", "/etc/slos-serve/slos-serve.toml"]
