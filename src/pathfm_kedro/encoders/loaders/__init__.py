"""Networks with their weights, one file for each form in which they are published."""
