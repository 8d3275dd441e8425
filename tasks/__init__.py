"""The computation: what runs inside a container, one shard at a time."""
