"""A record as one page of HTML, without a script and without the network."""
