"""The simulated tasks, their behaviour policies, the four rooms, and the places of a robot's bodies in space."""
