"""How good a classifier is on images with labels, and what it costs to run."""
