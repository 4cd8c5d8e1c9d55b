"""What the binaries share: flags, devices, runs that train, records and what they come to."""
