"""Who may do what: the pages of other sites, keys, tokens and limits. It decides; REST and WebSocket ask it."""
