"""The page of a patching study."""
