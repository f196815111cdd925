"""What leaving at each exit costs on this machine: milliseconds and millijoules."""
