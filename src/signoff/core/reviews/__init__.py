"""Reviews: the rules for what a person must see, and the error budget of what nobody saw."""
