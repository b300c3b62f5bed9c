"""The part of StackSpot CLI that others call."""
