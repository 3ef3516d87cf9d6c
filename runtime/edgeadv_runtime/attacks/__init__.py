"""Pixels to pixels, and evidence of what an attack did: budgets, crafting, attacks without gradients, packs. Never a
count."""
