"""Where the sites of a model are: the known families, the guess for others, and the checks."""
