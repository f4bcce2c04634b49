"""Measurements of this project, as `python -m benchmarks NAME`."""
