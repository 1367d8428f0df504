"""One module per side of `round_exchange`: each plays the same rounds and says how long they took."""
