"""Search of features by concept."""
