"""The way from a config to a result: places, keys, provenance, experiments, the store, rollouts, sweeps."""
