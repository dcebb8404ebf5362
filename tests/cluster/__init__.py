"""Several relayds that share one state, and what breaks under them."""
