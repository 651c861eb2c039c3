"""The parts of the documentation that are made from code, and the command that writes them into the pages."""
