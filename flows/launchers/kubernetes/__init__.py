"""Shards as Jobs of a Kubernetes cluster."""
