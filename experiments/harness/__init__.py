"""What the experiments share: flags, devices, resumable training runs, records, and what they come to."""
