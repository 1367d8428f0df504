"""The shape of Flower's Hugging Face app: the model comes back with the evaluation, too."""
