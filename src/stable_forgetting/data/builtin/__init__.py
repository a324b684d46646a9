"""Small problems that come with the package: invented people and handwritten digits."""
