"""The training loop: data, state, checkpoints, logs."""
