"""Training: one model, many at once, one over a device mesh; and the smallest associative memory."""
