"""The experiments of Dombrowski and Kainz (arXiv 2306.01363), small for two CPU cores and in full for a GPU."""
