"""What an audit will take, counted before it begins."""
