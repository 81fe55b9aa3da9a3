"""The record of a merge and its views: tables, card, pictures, page, diagnostics."""
