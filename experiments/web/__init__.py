"""The page of a reproduction: its HTML, styles and script, and its explorer."""
