"""Activations out: shuffled batches for training, from a store or straight from a model."""
