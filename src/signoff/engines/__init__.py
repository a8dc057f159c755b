"""Where answers come from: a file for each kind of model."""
