"""One optimiser step: encoders, gradients, kernels, Adam, several processes."""
