"""The router's console for operators: a JSON API, live through server-sent events, and a page that reads it.

The console reads the router's own figures and changes nothing.
"""
