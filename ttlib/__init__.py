"""Trajectory Transformer: reinforcement learning as one sequence modeling problem.

The ten files here are the method of Janner, Li and Levine (2021).  Read tokenizer,
data, model, train, checkpoint, cache, search, control; cpu and files help.  The
folders are wings, and the core imports none of them.
"""
