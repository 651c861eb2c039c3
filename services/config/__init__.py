"""Options of all processes, from one TOML file and the environment, and their translation for the packages below."""
