#!/bin/sh
# Offers this container's KV caches on its own address, which is known only once it runs; then becomes the worker.
set -eu
address=$(hostname -i | cut -d ' ' -f 1)
export SLOS_SERVE_ENGINE__VLLM__SIDE_CHANNEL_HOST="${SLOS_SERVE_ENGINE__VLLM__SIDE_CHANNEL_HOST:-$address}"
export SLOS_SERVE_ENGINE__EMULATED__KV_HOST="${SLOS_SERVE_ENGINE__EMULATED__KV_HOST:-$address}"
exec "$@"
