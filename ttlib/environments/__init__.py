"""Simulated tasks, behaviour policies, four rooms, bodies in space."""
