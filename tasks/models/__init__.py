"""Language models: where they come from, how they are loaded, where their residual stream is."""
