"""What the Transformer is compared with: Gaussian ensembles, cloning, shooting."""
