"""Many runs side by side on Ray Tune: searches and comparisons."""
