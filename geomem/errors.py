"""The one exception that means: the caller's input is at fault, and this line says how."""


class InputError(ValueError):
  """Bad input; the message is one line: what was given, what is allowed, what to do.

  >>> geomem.Facts.bijections(subjects=1, relations=2)
  Traceback (most recent call last):
  geomem.errors.InputError: subjects is 1; it must be at least 2
  """
