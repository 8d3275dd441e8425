"""Sparse autoencoders: one convention, loaders for the public formats, a small trainer."""
