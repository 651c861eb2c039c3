"""The port for moving KV caches between engines, whichever backend moves the bytes."""
