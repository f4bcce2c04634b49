"""The teacher's answers on disk: computed once, read by every run that sees the same images."""
