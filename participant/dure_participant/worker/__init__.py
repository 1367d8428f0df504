"""The process that runs a Flower ClientApp: no keys, no network to the coordinator, may be killed at any time.

`protocol` is free of flwr and torch (the agent imports it); the rest is not.
"""
