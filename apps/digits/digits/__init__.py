"""Handwritten digits with Flower: an app that knows nothing about Dure."""
