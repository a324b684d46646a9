"""Models: loading, tasks, and predictions at label positions."""
