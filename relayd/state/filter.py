"""The filter language of requests: one parser for the command line, the admin socket and the app."""
