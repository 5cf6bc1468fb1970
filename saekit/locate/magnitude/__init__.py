"""Methods that rank objects by their activations or weights alone, without changing or differentiating a run."""
