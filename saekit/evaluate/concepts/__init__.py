"""Detection of known concepts by features: AUC, average precision, and recovery in a single feature."""
