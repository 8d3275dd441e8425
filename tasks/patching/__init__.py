"""Which SAE features cause a behaviour: the patching study."""
