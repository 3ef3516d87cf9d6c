"""Latency, energy and the conditions that they were measured under: the only clock."""
