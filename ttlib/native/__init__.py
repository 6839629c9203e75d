"""The compiled planner: a decoder in C++ with the verbs of `control.Decoder`, and its loader."""
