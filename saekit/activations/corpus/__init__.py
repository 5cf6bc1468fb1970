"""Text in: corpora, and the batches of tokens made of them."""
