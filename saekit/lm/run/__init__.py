"""One forward pass: which tokens, which edits, the hooks, the shared prefix."""
