"""What holds of a model: every query asked, the bits it needs and spends, the fewest bits per weight."""
