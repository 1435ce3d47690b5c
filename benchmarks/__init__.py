"""Measure Waver. Each script measures one thing, and writes JSON, a table and a figure into a folder."""
