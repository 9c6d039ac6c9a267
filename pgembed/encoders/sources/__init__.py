"""What an encoder comes from: a folder on this machine, a package, the Hugging Face hub, or a server."""
