"""The page of `samerge ui` for strangers: repositories of the Hub alone, no folder and no token of this Space."""

from samerge.ui.server import launch, strangers_page

page = strangers_page()

if __name__ == "__main__":
    launch(page, host=None, port=None, wait=True)
