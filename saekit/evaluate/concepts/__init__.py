"""Which concepts a dictionary has a feature for."""
