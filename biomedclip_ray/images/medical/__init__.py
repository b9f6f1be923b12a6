"""Hospitals' and pathology's formats, by the libraries of their fields: the extra `medical` installs them."""
