"""The shape of Flower's PyTorch app, with batch normalisation: integer buffers, evaluation at the server, a fraction for evaluation."""
