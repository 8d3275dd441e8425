"""Results in an object store: objects named by their content, manifests that vouch for them, readers."""
