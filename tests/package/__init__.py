"""The Debian package, and a newcomer with the README, on bare machines: fresh root folders of Debian."""
