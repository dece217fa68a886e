"""Many runs and their rows: sweeps and ablations."""
