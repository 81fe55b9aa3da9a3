"""The base run on a few inputs: how large the input channels of its modules are."""
