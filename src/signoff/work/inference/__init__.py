"""Steps of one model call: cache lookup, reservation, endpoint choice, metering, settlement."""
