"""The lexicons: what the genres draw their words from."""
