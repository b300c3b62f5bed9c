"""A stand-in for StackSpot CLI; the real one is not on the public index."""
