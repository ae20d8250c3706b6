"""Training with JAX on several devices."""
