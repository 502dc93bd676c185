"""What the numbers of many seeds say: estimates, intervals, tests, tables."""
