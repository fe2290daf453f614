"""`python -m stochade`: the command line."""

from stochade.cli import main

if __name__ == "__main__":
    main()
