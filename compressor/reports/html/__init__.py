"""A report as one HTML file that loads nothing: pictures are SVG in it, and it reads without scripts too."""
