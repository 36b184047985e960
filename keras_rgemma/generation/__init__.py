"""Text from a model: knows the state and any model with a step, not which model it is."""
