"""The door: HTTP in, the cascade behind it. Everything here is about the protocol, nothing about confidence."""
