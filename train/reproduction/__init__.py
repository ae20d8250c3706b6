"""Reproduction of the papers: studies as data, their runs at several scales, records, statistics and pages."""
