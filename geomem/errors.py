"""The exception for invalid input from the caller; its one-line message says what is wrong."""


class InputError(ValueError):
  """Bad input; the message is one line: what was given, what is allowed, what to do.

  >>> geomem.Facts.bijections(subjects=1, relations=2)
  Traceback (most recent call last):
  geomem.errors.InputError: subjects is 1; it must be at least 2
  """
