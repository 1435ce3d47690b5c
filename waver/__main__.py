"""Run the command line: `python -m waver`."""

from waver.cli import app

if __name__ == "__main__":
    app(prog_name="waver")
