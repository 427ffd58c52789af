"""WebSocket connections: watchers, subscriptions and publishers."""
