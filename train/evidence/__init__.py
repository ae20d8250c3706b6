"""The papers' tables: their numbers, what each needs at a budget, and the pages of results."""
