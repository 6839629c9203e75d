"""Figures of bodies and rooms, and viewers for the book."""
