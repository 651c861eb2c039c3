"""The model as files: where it is, what its tokenizer does, whether two workers have the same one. No torch here."""
