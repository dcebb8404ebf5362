"""What the internet sees: routes, admission, CORS, /chat and health."""
