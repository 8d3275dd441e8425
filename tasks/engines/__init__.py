"""Engines: run many trials that differ in one edit, and record what the model did."""
