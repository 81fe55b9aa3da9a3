"""What `quality.py` is made of: the table of merges, scores and their uncertainty, the runs, the page."""
