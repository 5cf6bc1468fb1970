"""How well features tell the tokens of known concepts: AUC, average precision, and recovery in a single feature."""
