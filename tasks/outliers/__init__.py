"""Systematic outlier features: which hidden dimensions are outliers in most layers and at many positions."""
