"""Draw what was found in a language model."""


def draw(records, folder):
  return []
