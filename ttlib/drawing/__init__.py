"""Drawings of bodies and rooms, the style of all figures, and HTML viewers for the book."""
