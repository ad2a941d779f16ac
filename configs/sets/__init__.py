"""The data sets of the two papers, one file each: where to get them, their licence, how they must lie."""
