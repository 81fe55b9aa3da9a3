"""Suites of adapters that others trained and published: downloaded by whoever runs them, asked as their sources ask."""
