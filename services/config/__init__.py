"""One TOML file and the environment, checked at construction."""
