"""Running a bundle: the cascade loop, backends, preprocessing and measured costs. No torch."""
