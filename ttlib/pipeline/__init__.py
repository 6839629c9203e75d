"""Where results come from: places, keys, provenance, experiments, the store, rollouts, sweeps."""
