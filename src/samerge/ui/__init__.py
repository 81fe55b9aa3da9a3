"""The page to merge on (`samerge ui`): what a visitor may reach, the work behind the page, the page, its server.

No other room imports gradio, which the extra `ui` brings; here it is imported by `page` and `server` alone.
"""
