"""Losses on relations between examples."""
