"""Files that people write or bring: YAML documents, images, and replacing a file whole."""
