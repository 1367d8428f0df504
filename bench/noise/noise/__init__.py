"""The benchmark's app: a model of any size, and clients that return base + noise."""
