"""The targets: processes (host), containers (compose), Modal, and boxes (remote)."""
