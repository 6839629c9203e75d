"""HDF5 in D4RL's layout, D4RL's files, regenerated data, data of your own."""
