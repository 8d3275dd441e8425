"""Plotly figure specifications as plain dictionaries: pure functions of report records."""
