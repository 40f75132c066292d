"""Science computes: numpy in, numpy out. No disk, no logging, no clock; random generators are passed in."""
