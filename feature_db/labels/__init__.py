"""Labels of features."""
