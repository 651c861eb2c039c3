"""The admission of a router: it asks the admission core for verdicts and carries them out."""
