"""The forms of own pairs: tables, WebDataset shards, the names of columns and of image files; `sources/own_files.py` is
the door.
"""
