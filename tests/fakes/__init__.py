"""Test doubles that run outside Signoff: model upstreams, webhook receivers, resolvers, proxies and topic clients."""
