"""What acts from frame to frame: the controller, the audit, kept answers."""
