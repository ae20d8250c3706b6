"""Measurements of time and memory: the tangent kernel, the methods, and the step against its alternatives."""
