"""The served model as files: its directory, its tokenizer and its fingerprint.

Torch is needed only to convert the built-in model.
"""
