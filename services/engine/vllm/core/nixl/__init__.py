"""The KV connector: it reads KV caches of other engines with NIXL, and never lets a stale or foreign one through."""
