"""Searching an experiment's settings: where points come from, the search itself, its report."""
