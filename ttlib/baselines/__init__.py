"""The methods that the Transformer is compared with: Gaussian ensembles, behaviour cloning, random shooting and CEM."""
