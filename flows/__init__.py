"""Orchestration: what runs, where and in what order. Never imports a tensor library."""
