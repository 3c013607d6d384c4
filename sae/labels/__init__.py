"""Labels from tokens and contexts, without a host or a service: words, their log-odds, the few that cover most contexts."""
