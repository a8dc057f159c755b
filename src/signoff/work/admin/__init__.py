"""Administration: models, keys, people, limits, prices, the cache, streams, secret rotation, health."""
