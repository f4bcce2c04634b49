"""Training and scoring on images that are read and decoded as they are needed."""
