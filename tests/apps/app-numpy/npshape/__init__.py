"""The shape of Flower's numpy app: a list of float64 arrays, noise for training, a list among the metrics."""
