"""The meaning of words, from static embeddings: which words of a corpus a query is about."""
