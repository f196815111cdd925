"""What executes the stages, behind one protocol."""
