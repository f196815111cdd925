"""Judging a bundle on images, alone or beside others."""
