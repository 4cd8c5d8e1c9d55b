"""Looking inside a model: one prompt in words, superpositions, patches, new facts."""
