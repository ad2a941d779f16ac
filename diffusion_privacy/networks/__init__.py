"""Score networks, classifiers and embeddings, used functionally (init/apply)."""
