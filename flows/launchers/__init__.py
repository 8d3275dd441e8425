"""Ways to run a shard: one small interface, one module for each kind of machine."""
