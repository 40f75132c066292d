"""`python -m zemosaicd`."""

from zemosaicd.cli import command

if __name__ == "__main__":
    command()
