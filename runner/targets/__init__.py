"""The places where jobs run: processes (host), containers (compose) and Modal."""
