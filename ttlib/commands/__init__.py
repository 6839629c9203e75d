"""The commands that make calls: python -m ttlib.commands."""
