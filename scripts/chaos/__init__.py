"""Chaos: a pool under load, its database and its processes disturbed, and an auditor who looks for lies."""
