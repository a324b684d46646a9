"""Where examples come from: sources, rules, example sets, and the order in which training sees them."""
