"""A small language model, pretrained with DiLoCo: a Flower app that knows nothing about Dure."""
