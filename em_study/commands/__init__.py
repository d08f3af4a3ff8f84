"""The commands of `em`, one file a topic; each file's `add(app)` puts its commands on the application."""
