"""The options of a merge, and the checks of single values."""
