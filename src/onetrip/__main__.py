"""`python -m onetrip`: the command line."""

from onetrip.cli import main

if __name__ == "__main__":
    main()
