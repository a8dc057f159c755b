"""The verbs: the one path that every request takes, a file for each verb a user would say."""
