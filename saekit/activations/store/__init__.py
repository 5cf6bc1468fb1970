"""Activations on disk: HDF5 shards and their manifest."""
