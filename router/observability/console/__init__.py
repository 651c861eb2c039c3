"""The router shown to whoever runs the cluster: a JSON API, live through server-sent events, and a page that reads it.

It reads the router's own figures and changes nothing.
"""
