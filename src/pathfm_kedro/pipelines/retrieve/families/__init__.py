"""Ways to compare slides, one to a file; :mod:`registry` lists them."""
