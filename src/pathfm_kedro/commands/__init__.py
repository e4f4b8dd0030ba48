"""Commands of the project beside Kedro's own; each runs when it is typed."""
