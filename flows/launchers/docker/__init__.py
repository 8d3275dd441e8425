"""Shards as containers of Docker's engine, or podman's."""
