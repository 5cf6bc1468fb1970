"""One file per architecture: its loss and the gradients of the loss."""
