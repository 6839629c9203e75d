"""Trajectory Transformer: reinforcement learning as one big sequence modeling problem (Janner, Li, Levine 2021)."""
