"""From a trained cascade to the stages of a bundle."""
