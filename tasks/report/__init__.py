"""Self-contained HTML reports of finished studies."""
