"""What make calls: python -m ttlib.commands."""
