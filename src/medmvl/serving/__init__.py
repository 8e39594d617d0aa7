"""Serving of a model: the demo page."""
