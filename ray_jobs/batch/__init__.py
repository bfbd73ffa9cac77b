"""What batch scoring is made of: finding and reading its input, scoring a part of it, and the folder of its output."""
