"""Studies that measure what is claimed, each in a file of its own, and the other binaries."""
