"""How messages get to the addresses that users gave."""
