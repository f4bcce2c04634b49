"""What is said and drawn of comparisons and searches: plain values in, text and pictures out."""
