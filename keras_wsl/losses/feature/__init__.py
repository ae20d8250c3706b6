"""Losses on inner endpoints, pair by pair."""
