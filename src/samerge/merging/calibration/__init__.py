"""The base run on a few inputs: in which metric of what it takes each module is merged."""
