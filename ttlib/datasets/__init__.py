"""HDF5 files with D4RL's keys, D4RL's own files, regenerated datasets, and data of your own."""
