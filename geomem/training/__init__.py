"""Training: one model, many at once, one over a mesh; what is learned at the smallest size."""
