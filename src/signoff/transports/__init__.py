"""Transports, a file each, over FastStream. Each is imported when the first stream needs it."""
