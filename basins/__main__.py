"""`python -m basins` is the command `basins`."""

from basins.cli import app

if __name__ == "__main__":
    app(prog_name="basins")
