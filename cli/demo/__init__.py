"""The command `demo`: a story in four acts about promises on the machine that it runs on."""
