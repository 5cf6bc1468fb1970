"""How good a dictionary is: reconstruction, and what the model loses when the dictionary is spliced in."""
