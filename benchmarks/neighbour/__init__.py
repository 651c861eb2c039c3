"""Promised streams of one client while another, who is hostile, tries everything that has ever harmed a router."""
