"""Pages for people: a page a file, with templates and static files beside them."""
