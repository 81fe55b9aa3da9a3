"""The options of a merge, the checks of single values, and what the name of a module says."""
