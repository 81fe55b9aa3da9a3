"""`python -m samerge`."""

from samerge.cli import run

if __name__ == "__main__":
    run()
