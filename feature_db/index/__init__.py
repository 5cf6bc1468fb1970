"""One pass over the activations: everything the database says of a feature."""
