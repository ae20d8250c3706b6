"""Losses on the outputs of inner layers, pair by pair."""
