"""The file formats of adapters: one small file each, and a table of them (`table.py`)."""
