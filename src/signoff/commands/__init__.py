"""The commands that look after a deployment; each file has those of one noun."""
