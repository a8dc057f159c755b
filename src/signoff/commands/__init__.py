"""Commands that administer a deployment; each module has the commands of one noun."""
