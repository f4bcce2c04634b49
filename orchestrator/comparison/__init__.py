"""Comparing methods or settings over paired seeds: what is asked, the runs, the report."""
